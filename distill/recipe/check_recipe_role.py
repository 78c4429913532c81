"""Check that train-teacher or distill can use a recipe."""

from collections.abc import Iterator

from distill.recipe.find_teacher_recipe import is_teacher_recipe
from distill.recipe.loss_schema import TEACHERS
from distill.recipe.recipes import RecipeError, ResolvedRecipe, has_teacher
from distill.recipe.schema import Recipe, Student


def check_teacher(resolved: ResolvedRecipe) -> None:
    """Raise RecipeError if train-teacher cannot use the recipe.

    It needs a [teacher] table, and no loss term may need a teacher.
    """
    recipe, origins = resolved.recipe, resolved.origins
    faults = []
    if recipe.teacher is None:
        faults.append("teacher is missing; train-teacher needs a [teacher] table")
    for name, term in recipe.loss.terms().items():
        if term.needs & TEACHERS:
            origin = origins[f"loss.{name}.weight"]
            faults.append(
                f"loss.{name} ({origin}) needs a teacher, but train-teacher has none; "
                f"type --set loss.{name}=false{_hard_weight_option(recipe)}"
            )
    if faults:
        raise RecipeError(resolved.name, faults)


def _hard_weight_option(recipe: Recipe) -> str:
    """Return the --set that sets the weight of the loss term on labels to 1; empty if it is 1."""
    hard = recipe.loss.hard
    return " --set loss.hard.weight=1" if hard is None or hard.weight != 1 else ""


def check_student(resolved: ResolvedRecipe) -> Student:
    """Return the [student] table; raise RecipeError if distill cannot use the recipe without it."""
    if resolved.recipe.student is None:
        fault = "student is missing; distill needs a [student] table, as in kd"
        if resolved.recipe.teacher is not None:
            fault += f"; for its teacher type train-teacher --recipe {resolved.name}"
        raise RecipeError(resolved.name, [fault])
    return resolved.recipe.student


def note_on_teacher_recipe(resolved: ResolvedRecipe) -> Iterator[str]:
    """Yield a note if distill is to train the student of a recipe that is meant for a teacher."""
    if has_teacher(resolved.recipe):
        return
    for part in filter(is_teacher_recipe, resolved.name.split("+")):
        yield (
            f"{part} is a recipe for teachers: distill trains the student alone, without a "
            f"teacher; for the teacher type train-teacher --recipe {resolved.name}"
        )
        return
