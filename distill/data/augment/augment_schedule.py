"""Define the order of augmentations and the epochs in which each of them is on."""

from dataclasses import dataclass, fields, replace
from typing import Protocol

from torch import Tensor

from distill.data.augment.crop_flip import Crop, Flip
from distill.data.augment.mixup_cutmix import Cutmix, Mixup
from distill.data.augment.ricap import Ricap

OperationParams = dict[str, Tensor]  # one row per sample


class Operation(Protocol):
    """An augmentation of single images with random parameters."""

    @property
    def before_crop(self) -> bool:
        """Whether it is applied before crop and flip instead of after them."""

    def draw(self, seed: int, view: int, n: int, size: int) -> OperationParams:
        """Draw the random parameters of samples 0..n-1 of a view, on the host.

        `size`: height and width of the images in pixels.
        """

    def __call__(self, pixels: Tensor, drawn: OperationParams) -> Tensor:
        """Apply the parameters `drawn` for B samples to their pixels, uint8 [B, 3, H, W]."""


@dataclass(frozen=True)
class Pipeline:
    """The augmentations of a view's images, applied in the order of the fields.

    A field of None turns an augmentation off. There is one exception to the order: operations with
    `before_crop` set are applied before the crop. Images are mixed at full size and then resized to
    `side` x `side` pixels. The cache keys of teacher logits contain this object's repr, so the repr
    must change if the pixels change, and only then.
    """

    crop: Crop | None = None
    flip: Flip | None = None
    operations: tuple[Operation, ...] = ()
    mixup: Mixup | None = None
    cutmix: Cutmix | None = None
    ricap: Ricap | None = None
    side: int | None = None

    def __repr__(self) -> str:
        """Return the dataclass repr, without `side` if it is None, for use in cache keys.

        Cache keys of earlier versions have no `side`.
        """
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        shown = [f"{name}={value!r}" for name, value in values if (name, value) != ("side", None)]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def mixes(self) -> bool:
        return any((self.mixup, self.cutmix, self.ricap))

    def without(self, *, operations: bool, mixing: bool) -> "Pipeline":
        """Return a copy in which one or both are removed.

        `operations`: whether to remove all operations (crop and flip remain); `mixing`: whether to
        remove the mixing of images.
        """
        changed = self
        if operations:
            changed = replace(changed, operations=())
        if mixing:
            changed = replace(changed, mixup=None, cutmix=None, ricap=None)
        return changed


@dataclass(frozen=True)
class AugmentSchedule:
    """Chooses the view, the augmentations and the image size of each epoch.

    Epochs count from 0. Epoch e trains on view e mod `views`; without `views`, on view e.
    Operations are on before epoch `operations_end`, mixing before epoch `mixing_end`; None means
    always. `sides` are pairs (fraction of the training, image size in pixels), with fractions
    increasing from 0 and None for full size. Epoch e has the size of the last pair whose fraction
    is at most e / `epochs`. If `sides` is empty, every epoch has full size.
    """

    views: int | None = None
    operations_end: int | None = None
    mixing_end: int | None = None
    sides: tuple[tuple[float, int | None], ...] = ()
    epochs: int = 1

    def side(self, epoch: int) -> int | None:
        """Return the height and width of an epoch's images in pixels; None means full size."""
        begun = [side for share, side in self.sides if share <= epoch / self.epochs]
        return begun[-1] if begun else None

    @property
    def image_sizes(self) -> tuple[tuple[float, int | None], ...]:
        """Return `sides`, or if it is empty one pair of full size for the whole training."""
        return self.sides or ((0.0, None),)

    def at(self, side: int | None) -> "AugmentSchedule":
        """Return a copy with images of `side` x `side` pixels in every epoch; None: full size."""
        return replace(self, sides=((0.0, side),))

    def view(self, epoch: int) -> int:
        return epoch % self.views if self.views else epoch

    def pipeline(self, whole: Pipeline, epoch: int) -> Pipeline:
        """Return a copy of `whole` with only the augmentations that are on in an epoch.

        Its `side` is the image size of the epoch.
        """
        on = whole.without(
            operations=self.operations_end is not None and epoch >= self.operations_end,
            mixing=self.mixing_end is not None and epoch >= self.mixing_end,
        )
        return replace(on, side=self.side(epoch))
