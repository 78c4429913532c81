"""Choose the mean and std by which the network of a run normalises its images.

They belong to the data set, not to the part of it that is trained on: "computed" are those of the
whole train split, as CIFAR's published ones are, so that they are the same for a teacher, its
student and the control, whatever they hold out.
"""

from distill.data.channel_statistics import Channels, mean_and_std
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import ImageSet
from distill.recipe import recipe_variants
from distill.recipe.recipes import Recipe
from students.normalize_images import KNOWN, MEAN, STD

CIFAR10 = "cifar10"  # the data set whose values a run has if its recipe names none
TITLES = {"cifar10": "CIFAR-10's", "cifar100": "CIFAR-100's"}


def resolve(recipe: Recipe, images: ImageSet) -> Recipe:
    """Return a new run's recipe with `data.normalize` as its recipe.toml has it.

    It is absent if it is CIFAR-10's by default, as in runs of earlier versions. Otherwise it is the
    name of a data set, or mean and std. `images`: the train split.
    """
    default = _default(images)
    chosen = recipe.data.normalize or default
    if chosen == CIFAR10 == default:
        return _with(recipe, None)
    return _with(recipe, mean_and_std(images.images) if chosen == "computed" else chosen)


def with_values(
    recipe: Recipe, values: tuple[tuple[float, ...], tuple[float, ...]] | None
) -> Recipe:
    """Return a recipe whose network normalises by these mean and std; None: CIFAR-10's."""
    names: dict[object, str] = {known: name for name, known in KNOWN.items()}
    chosen = None if values is None else names.get(values, values)
    return _with(recipe, None if chosen == CIFAR10 else chosen)


def _default(images: ImageSet) -> str:
    """Return `data.normalize` for a data set: the name of one whose values are known, "computed".

    CIFAR-10 is also recognised by its images, if they are in class folders.
    """
    if images.normalised_as is not None:
        return images.normalised_as
    return CIFAR10 if load_data_set.published_set(images) == CIFAR10 else "computed"


def _with(recipe: Recipe, value: object) -> Recipe:
    return recipe_variants.with_data(recipe, normalize=value)


def constants(recipe: Recipe) -> tuple[Channels, Channels]:
    """Return the mean and std of red, green and blue in a run's recipe, for images in [0, 1]."""
    chosen = recipe.data.normalize
    if chosen is None:
        return MEAN, STD
    assert chosen != "computed"  # `resolve` replaced it by its values
    return KNOWN[chosen] if isinstance(chosen, str) else chosen


def note(recipe: Recipe) -> str | None:
    """Return a note on the mean and std of a run, if they are not CIFAR-10's by default."""
    chosen = recipe.data.normalize
    if chosen is None:
        return None
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in constants(recipe))
    whose = f"{TITLES[chosen]} " if isinstance(chosen, str) else ""
    return f"data.normalize: images are normalised by {whose}mean {mean} and std {std}"
