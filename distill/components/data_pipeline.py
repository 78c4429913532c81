"""Build the data pipeline of a recipe: hold-out split, batches, augmentation and its schedule."""

from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator

from distill.data import split as data_split
from distill.data.augment import affine, auto_augment, color, crop_flip, erase, mixup_cutmix, ricap
from distill.data.augment.pipeline import AugmentSchedule, Operation, Pipeline
from distill.data.images import SIDE
from distill.data.loader import Loader, Shard
from distill.data.sources import image_set
from distill.data.sources.image_set import ImageSet
from distill.errors import UnsuitableRecipe
from distill.recipe.recipes import Recipe


@dataclass(frozen=True)
class TrainValSplit:
    """The images a run may see: a part to train on, and one held out or, at holdout 0, None."""

    fingerprint: str  # of the whole train split
    train: ImageSet
    held_out: ImageSet | None


def split_indices(
    recipe: Recipe, images: ImageSet
) -> tuple[data_split.Indices, data_split.Indices]:
    """Which images a recipe's `[data]`, and nothing else, trains on, and which it holds out."""
    return data_split.split(
        images, holdout=recipe.data.holdout, train_images=recipe.data.train_images
    )


def split_images(recipe: Recipe, images: ImageSet) -> TrainValSplit:
    """The train split, divided."""
    train, held_out = split_indices(recipe, images)
    return TrainValSplit(
        images.fingerprint,
        image_set.subset(images, train),
        image_set.subset(images, held_out) if len(held_out) else None,
    )


# Applied in this order; those that are `before_crop` first.
OPERATIONS: dict[str, Callable[..., Operation]] = {
    "translate": affine.Translate,
    "affine": affine.Affine,
    "rotate": affine.Rotate,
    "trivial": auto_augment.TrivialAugment,
    "rand": auto_augment.RandAugment,
    "jitter": color.ColourJitter,
    "cutout": erase.Cutout,
    "erase": erase.Erase,
}


def build_loader(recipe: Recipe, images: ImageSet, accel: Accelerator) -> Loader:
    """Raises Unfit where the batch does not divide, or is larger than the set."""
    parts = accel.num_processes * recipe.train.accumulate
    batch_size = recipe.train.batch_size
    if batch_size % parts:
        raise UnsuitableRecipe(
            f"train.batch_size = {batch_size} is the global batch and must be divisible by "
            f"processes x accumulate = {accel.num_processes} x {recipe.train.accumulate}.\n"
            f"Type --set train.batch_size={-(-batch_size // parts) * parts}."
        )
    n = len(images.labels)
    if batch_size > n:
        raise UnsuitableRecipe(
            f"train.batch_size = {batch_size} is more than the {n} training images.\n"
            f"Type --set train.batch_size={n} or less."
        )
    return Loader(
        images,
        batch_size=batch_size,
        seed=recipe.data.seed,
        pipeline=build_pipeline(recipe),
        device=accel.device,
        shard=Shard(accel.process_index, accel.num_processes, recipe.train.accumulate),
    )


def build_pipeline(recipe: Recipe) -> Pipeline:
    """What is done to the images."""
    ops, mixing = recipe.augment, recipe.mix
    return Pipeline(
        crop=crop_flip.Crop(**dict(ops.crop)) if ops.crop else None,
        flip=crop_flip.Flip(**dict(ops.flip)) if ops.flip else None,
        operations=tuple(
            operation(**dict(table))
            for name, operation in OPERATIONS.items()
            if (table := getattr(ops, name)) is not None
        ),
        mixup=mixup_cutmix.Mixup(**dict(mixing.mixup)) if mixing.mixup else None,
        cutmix=mixup_cutmix.Cutmix(**dict(mixing.cutmix)) if mixing.cutmix else None,
        ricap=ricap.Ricap(**dict(mixing.ricap)) if mixing.ricap else None,
    )


def augment_schedule(recipe: Recipe, epochs: int) -> AugmentSchedule:
    """Which view an epoch trains on, when operations and mixing end, and the images' sides.

    Images at their own size are not resized: their views are those of a recipe without sides.
    """
    resolution = recipe.train.resolution or ()
    return AugmentSchedule(
        views=recipe.cache.views if recipe.cache else None,
        operations_end=_clean_from(epochs, recipe.augment.off_last),
        mixing_end=_clean_from(epochs, recipe.mix.off_last),
        sides=tuple((share, None if side == SIDE else side) for share, side in resolution),
        epochs=epochs,
    )


def _clean_from(epochs: int, off_last: float) -> int:
    """The first epoch of the last share `off_last`: if it is above 0, it is one epoch at least.

    A run of a single epoch has no end to switch off. Rounding alone would leave 5 % of 10 epochs
    without effect: round(9.5) is 10.
    """
    begin = round(epochs * (1 - off_last))
    return min(begin, epochs - 1) if off_last > 0 and epochs > 1 else begin
