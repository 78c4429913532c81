"""Derive recipes from a recipe: its control, and the same with other teachers, data or seed."""

from collections.abc import Sequence
from typing import Any

from distill.recipe.loss_schema import Hard, Losses, When
from distill.recipe.schema import Recipe, Teacher

ENSEMBLE_KEYS = {"draw", "mirror", "weights"}


def control_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the control, which trains the same student without a teacher.

    Its only loss term is the cross-entropy with the labels, at weight 1.
    """
    hard = (recipe.loss.hard or Hard()).model_copy(update={"weight": 1.0, "when": When()})
    # The control reads no cached logits, but must train on the same views.
    cache = recipe.cache if recipe.cache and recipe.cache.views else None
    return recipe.model_copy(update={"loss": Losses(hard=hard), "cache": cache})


def with_teacher(recipe: Recipe, runs: Sequence[str]) -> Recipe:
    """Return the recipe with the networks of these run folders as teachers."""
    teacher = (recipe.teacher or Teacher()).model_copy(update={"runs": tuple(runs)})
    return recipe.model_copy(update={"teacher": teacher})


def ensemble_keys(recipe: Recipe) -> set[str]:
    """Return which of the [teacher] keys `draw`, `mirror` and `weights` differ from the default."""
    default, teacher = Teacher(), recipe.teacher or Teacher()
    return {key for key in ENSEMBLE_KEYS if getattr(teacher, key) != getattr(default, key)}


def with_single_teacher(recipe: Recipe, i: int) -> Recipe:
    """Return the recipe with only the i-th of its teachers."""
    assert recipe.teacher is not None
    single = {"runs": recipe.teacher.runs[i : i + 1], "draw": "all", "weights": ()}
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update=single)})


def with_source(recipe: Recipe, source: str) -> Recipe:
    """Return the recipe with another data source."""
    return with_data(recipe, source=source)


def with_size_and_normalisation_of(recipe: Recipe, earlier: Recipe) -> Recipe:
    """Return the recipe with a run's image size and normalisation, if it does not set them.

    `earlier`: the recipe.toml of a run that was begun with `recipe`. In it an absent `data.size`
    is 32, an absent `data.normalize` is CIFAR-10's, and the values of "computed" are known.
    """
    typed, known = recipe.data, earlier.data
    has_values = typed.normalize == "computed" and isinstance(known.normalize, tuple)
    is_default = typed.normalize == "cifar10" and known.normalize is None
    filled = dict[str, Any]()
    if typed.normalize is None or has_values or is_default:
        filled["normalize"] = known.normalize
    if typed.size in (None, known.image_size):
        filled["size"] = known.size
    return with_data(recipe, **filled)


def with_data(recipe: Recipe, **values: Any) -> Recipe:
    """Return the recipe with these values of [data]."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=values)})


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with this seed for initial weights and for data."""
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"seed": seed}),
            "train": recipe.train.model_copy(update={"seed": seed}),
        }
    )
