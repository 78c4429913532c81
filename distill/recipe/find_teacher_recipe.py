"""Find the recipe of the teacher that a recipe's student needs."""

from contextlib import suppress

from distill.recipe.recipe_files import parsed, shipped_paths
from distill.recipe.recipes import RecipeError, has_teacher, load, shipped


def teacher_for(name: str) -> str:
    """Return what to type after `train-teacher --recipe` to train a teacher for the recipe `name`.

    For `kd_cutmix+quickstart` it is `teacher_wrn+quickstart`. It is taken from `teacher` in the
    [about] tables of the recipe's parts. Ingredients that add a term that needs a teacher, such as
    `published_at`, are left out.
    """
    first, *ingredients = name.split("+")
    ingredients = [each for each in ingredients if not _adds_teacher_term(each)]
    teachers = [each for each in ingredients if is_teacher_recipe(each)]
    note = ""
    with suppress(RecipeError):
        note = load(first).recipe.about.teacher
    base, _, options = (note if note not in ("", "none") else "teacher_wrn").partition(" ")
    if teachers:  # the recipe names its teacher's itself
        base, options = teachers[-1], ""
        ingredients = [each for each in ingredients if each not in teachers]
    more = (_teacher_options(base, ingredient) for ingredient in ingredients)
    return " ".join(filter(None, ["+".join([base, *ingredients]), options, *more]))


def is_teacher_recipe(part: str) -> bool:
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
