"""Check that train-teacher or distill can use a recipe, and name the recipe of its teacher."""

from contextlib import suppress

from distill.recipe.loss_schema import TEACHERS
from distill.recipe.recipe_files import parsed, shipped_paths
from distill.recipe.recipes import RecipeError, ResolvedRecipe, has_teacher, load, shipped
from distill.recipe.schema import Recipe, Student


def teacher_for(name: str) -> str:
    """Return what to type after `train-teacher --recipe` to train a teacher for the recipe `name`.

    For `kd_cutmix+quickstart` it is `teacher_wrn+quickstart`. It is taken from `teacher` in the
    [about] tables of the recipe's parts. Ingredients that add a term that needs a teacher, such as
    `published_at`, are left out.
    """
    first, *ingredients = name.split("+")
    ingredients = [each for each in ingredients if not _adds_teacher_term(each)]
    teachers = [each for each in ingredients if _is_teacher_recipe(each)]
    note = ""
    with suppress(RecipeError):
        note = load(first).recipe.about.teacher
    base, _, options = (note if note not in ("", "none") else "teacher_wrn").partition(" ")
    if teachers:  # the recipe names its teacher's itself
        base, options = teachers[-1], ""
        ingredients = [each for each in ingredients if each not in teachers]
    more = (_teacher_options(base, ingredient) for ingredient in ingredients)
    return " ".join(filter(None, ["+".join([base, *ingredients]), options, *more]))


def _is_teacher_recipe(part: str) -> bool:
    """Whether a shipped recipe is a whole one for train-teacher, such as `teacher_wrn`."""
    with suppress(RecipeError):
        recipe = load(part).recipe
        return recipe.teacher is not None and recipe.student is None and not has_teacher(recipe)
    return False


def _adds_teacher_term(ingredient: str) -> bool:
    """Whether a shipped ingredient has a loss term that needs a teacher."""
    paths = [path for path in shipped_paths() if path.stem == ingredient]
    losses = (parsed(path, []).get("loss", {}) for path in paths)
    return any(
        name != "hard" and table is not False for terms in losses for name, table in terms.items()
    )


def _teacher_options(base: str, ingredient: str) -> str:
    """Return the --set options that an ingredient's [about] gives for training the teacher `base`.

    Empty if it gives none for this teacher.
    """
    with suppress(RecipeError):
        for name, _, about in shipped():
            spec, _, options = about.teacher.partition(" ")
            if name == ingredient and spec == f"{base}+{ingredient}":
                return options
    return ""


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
