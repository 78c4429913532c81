"""Build the data pipeline of a recipe: hold-out split, batches, augmentation and its schedule."""

from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator

from distill.data import split_by_content
from distill.data.augment import affine, auto_augment, color, crop_flip, erase, mixup_cutmix, ricap
from distill.data.augment.augment_schedule import AugmentSchedule, Operation, Pipeline
from distill.data.loader import Loader, Shard
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet
from distill.errors import UnsuitableRecipe
from distill.format import counted
from distill.recipe.recipes import Recipe


@dataclass(frozen=True)
class TrainValSplit:
    """The training and held-out images of a run; `held_out` is None if `data.holdout` is 0."""

    fingerprint: str  # of the whole train split
    train: ImageSet
    held_out: ImageSet | None


def split_indices(
    recipe: Recipe, images: ImageSet
) -> tuple[split_by_content.Indices, split_by_content.Indices]:
    """Return the indices of the training images and of the held-out images.

    They depend only on the images and on the recipe's [data] table.
    """
    return split_by_content.split(
        images, holdout=recipe.data.holdout, train_images=recipe.data.train_images
    )


def split_images(recipe: Recipe, images: ImageSet) -> TrainValSplit:
    """Divide the train split into training and held-out images."""
    train, held_out = split_indices(recipe, images)
    return TrainValSplit(
        images.fingerprint,
        load_data_set.subset(images, train),
        load_data_set.subset(images, held_out) if len(held_out) else None,
    )


# Applied in this order; operations with `before_crop` set are applied first.
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


def build_loader(recipe: Recipe, images: ImageSet, accelerator: Accelerator) -> Loader:
    """Build the loader of this process's batches.

    Raises UnsuitableRecipe if the batch cannot be divided over the processes, if it is larger than
    the training set, or if the last, partial batch is trained but too small for the processes.
    """
    parts = accelerator.num_processes * recipe.train.accumulate
    batch_size = recipe.train.batch_size
    if batch_size % parts:
        raise UnsuitableRecipe(
            f"train.batch_size = {batch_size} is the global batch and must be divisible by "
            f"processes x accumulate = {accelerator.num_processes} x {recipe.train.accumulate}.\n"
            f"Type --set train.batch_size={-(-batch_size // parts) * parts}."
        )
    n = len(images.labels)
    if batch_size > n:
        raise UnsuitableRecipe(
            f"train.batch_size = {batch_size} is more than the {n} training images.\n"
            f"Type --set train.batch_size={n} or less."
        )
    if not recipe.train.drop_last:
        _check_last_batch(n, batch_size, accelerator.num_processes, recipe.train.accumulate)
    return Loader(
        images,
        batch_size=batch_size,
        drop_last=recipe.train.drop_last,
        seed=recipe.data.seed,
        pipeline=build_pipeline(recipe),
        device=accelerator.device,
        shard=Shard(accelerator.process_index, accelerator.num_processes, recipe.train.accumulate),
    )


def _check_last_batch(n: int, batch_size: int, processes: int, accumulate: int) -> None:
    """Raise UnsuitableRecipe if the last batch of `n` images cannot be trained.

    Each process needs the same number of images, so that their mean is that of the batch, and more
    than one image, so that batch norm has a variance.
    """
    parts, left = processes * accumulate, n % batch_size
    divided = f"processes x accumulate = {processes} x {accumulate}"
    last = f"train.drop_last = false trains a last batch of {counted(left, 'image')} in each epoch"
    if left % parts:
        raise UnsuitableRecipe(
            f"{last}, which cannot be divided equally over {divided}.\n"
            "Type --set train.drop_last=true, or choose processes x accumulate so that it divides "
            f"the {n} training images."
        )
    if left == parts:
        sizes = range(parts, n + 1, parts)
        fitting = [size for size in sizes if n % size != parts]
        nearest = min(fitting, key=lambda size: (abs(size - batch_size), size))
        raise UnsuitableRecipe(
            f"{last}, one for each part of {divided}, and batch norm needs more than one image.\n"
            f"Type --set train.batch_size={nearest} or --set train.drop_last=true."
        )


def build_pipeline(recipe: Recipe) -> Pipeline:
    """Build the augmentation pipeline of a recipe."""
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
    """Build the schedule of views, augmentation, mixing and image sizes over the epochs.

    An image size equal to that of the images becomes None (no resizing), so that such views use the
    same cached teacher logits as recipes without `train.resolution`.
    """
    resolution = recipe.train.resolution or ()
    return AugmentSchedule(
        views=recipe.cache.views if recipe.cache else None,
        operations_end=_first_unaugmented_epoch(epochs, recipe.augment.off_last),
        mixing_end=_first_unaugmented_epoch(epochs, recipe.mix.off_last),
        sides=tuple(
            (share, None if side == recipe.data.image_size else side) for share, side in resolution
        ),
        epochs=epochs,
    )


def _first_unaugmented_epoch(epochs: int, off_last: float) -> int:
    """Return the first epoch without augmentation, if it is off in the last part of a training.

    `off_last` is that part as a fraction of the epochs. A fraction above 0 covers at least one
    epoch, except in a training of one epoch. Rounding alone would ignore 5 % of 10 epochs, since
    round(9.5) is 10.
    """
    begin = round(epochs * (1 - off_last))
    return min(begin, epochs - 1) if off_last > 0 and epochs > 1 else begin
