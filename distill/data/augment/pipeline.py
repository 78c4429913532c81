"""The order of augmentations, and the epochs in which each is on."""

from dataclasses import dataclass, fields, replace
from typing import Protocol

from torch import Tensor

from distill.data.augment.crop_flip import Crop, Flip
from distill.data.augment.mixup_cutmix import Cutmix, Mixup
from distill.data.augment.ricap import Ricap

OperationParams = dict[str, Tensor]  # one row a sample


class Operation(Protocol):
    """What is done to single images, before crop and flip or after them."""

    @property
    def before_crop(self) -> bool: ...

    def draw(self, seed: int, view: int, n: int, size: int) -> OperationParams:
        """Everything random about samples 0..n-1 of a view, on the host."""

    def __call__(self, pixels: Tensor, drawn: OperationParams) -> Tensor:
        """uint8 [B, 3, H, W] to the same, by the draws of those B samples."""


@dataclass(frozen=True)
class Pipeline:
    """What happens to the images of a view, in this order; what is absent is off.

    Operations that are `before_crop` come first, on whole images; the others after the flip. Images
    are mixed at their full size and then resized to `side` pixels. Cached teacher logits are found
    by the repr: it must change when pixels do, and only then.
    """

    crop: Crop | None = None
    flip: Flip | None = None
    operations: tuple[Operation, ...] = ()
    mixup: Mixup | None = None
    cutmix: Cutmix | None = None
    ricap: Ricap | None = None
    side: int | None = None

    def __repr__(self) -> str:
        """The generated one, without `side` if that is None: as before there were sides."""
        named = [(each.name, getattr(self, each.name)) for each in fields(self)]
        shown = [f"{name}={value!r}" for name, value in named if (name, value) != ("side", None)]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def mixes(self) -> bool:
        return any((self.mixup, self.cutmix, self.ricap))

    def without(self, *, operations: bool, mixing: bool) -> "Pipeline":
        """The same with its operations or its mixing off."""
        changed = self
        if operations:
            changed = replace(changed, operations=())
        if mixing:
            changed = replace(changed, mixup=None, cutmix=None, ricap=None)
        return changed


@dataclass(frozen=True)
class AugmentSchedule:
    """Which view each epoch trains on, until when it is augmented and mixed, and its images' side.

    `views`: epoch e trains on view e mod `views`; without it each epoch has its own. Operations are
    on before epoch `operated`, mixing before epoch `mixed`; without a number, always. `sides`:
    (share, side in pixels, None for full size), shares rising from 0: epoch e, counted from 0, of
    `epochs` has the last side whose share is at most e / `epochs`. Without any, full size.
    """

    views: int | None = None
    operations_end: int | None = None
    mixing_end: int | None = None
    sides: tuple[tuple[float, int | None], ...] = ()
    epochs: int = 1

    def side(self, epoch: int) -> int | None:
        """The side of an epoch's images; None for full size."""
        begun = [side for share, side in self.sides if share <= epoch / self.epochs]
        return begun[-1] if begun else None

    @property
    def spans(self) -> tuple[tuple[float, int | None], ...]:
        """(share, side) from 0 on, also without a schedule."""
        return self.sides or ((0.0, None),)

    def at(self, side: int | None) -> "AugmentSchedule":
        """The same with one side throughout."""
        return replace(self, sides=((0.0, side),))

    def view(self, epoch: int) -> int:
        return epoch % self.views if self.views else epoch

    def pipeline(self, whole: Pipeline, epoch: int) -> Pipeline:
        """What is on in an epoch."""
        on = whole.without(
            operations=self.operations_end is not None and epoch >= self.operations_end,
            mixing=self.mixing_end is not None and epoch >= self.mixing_end,
        )
        return replace(on, side=self.side(epoch))
