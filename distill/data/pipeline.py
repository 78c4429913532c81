"""What happens to the images of an epoch, and which epochs it happens in."""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from distill.data.augment import Crop, Flip
from distill.data.mix import Cutmix, Mixup
from distill.data.ricap import Ricap

Drawn = dict[str, Tensor]  # one row a sample


class Operation(Protocol):
    """What is done to single images, before crop and flip or after them."""

    @property
    def before_crop(self) -> bool: ...

    def draw(self, seed: int, view: int, n: int, size: int) -> Drawn:
        """Everything random about samples 0..n-1 of a view, on the host."""

    def __call__(self, pixels: Tensor, drawn: Drawn) -> Tensor:
        """uint8 [B, 3, H, W] to the same, by the draws of those B samples."""


@dataclass(frozen=True)
class Pipeline:
    """What happens to the images of a view, in this order; what is absent is off.

    Operations that are `before_crop` come first, on whole images; the others after the flip. Cached
    teacher logits are found by the repr: it must change when pixels do, and only then.
    """

    crop: Crop | None = None
    flip: Flip | None = None
    operations: tuple[Operation, ...] = ()
    mixup: Mixup | None = None
    cutmix: Cutmix | None = None
    ricap: Ricap | None = None

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
class Calendar:
    """Which view each epoch trains on, and until when it is augmented and mixed.

    `views`: epoch e trains on view e mod `views`; without it each epoch has its own. Operations are
    on before epoch `operated`, mixing before epoch `mixed`; without a number, always.
    """

    views: int | None = None
    operated: int | None = None
    mixed: int | None = None

    def view(self, epoch: int) -> int:
        return epoch % self.views if self.views else epoch

    def pipeline(self, whole: Pipeline, epoch: int) -> Pipeline:
        """What is on in an epoch."""
        return whole.without(
            operations=self.operated is not None and epoch >= self.operated,
            mixing=self.mixed is not None and epoch >= self.mixed,
        )
