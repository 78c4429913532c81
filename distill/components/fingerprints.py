"""Fingerprints that tie a run to its data, classes, teachers and recipe.

A checkpoint holds them, a resumed run must have the same, and result.json takes them from here.
"""

from distill.components.test_split import SplitIdentity
from distill.data.images import ImageSet, fingerprint_of_names
from distill.recipe.recipes import Recipe
from distill.runs import run_folder

CACHED = ("data", "teacher")  # those that teacher logits depend on
CALLED = {  # in a message
    "data": "data",
    "teacher": "teacher",
    "class_names": "class names",
    "recipe": "recipe",
    "test": "test split",
}


def identity(
    recipe: Recipe, images: ImageSet, teachers: str, test: SplitIdentity | None = None
) -> dict[str, str]:
    """Return fingerprints by name: `data` (of the train split), `teacher` (`teachers`, computed by
    `selection.teachers_fingerprint`), `class_names`, `recipe` (see `run_folder`), and `test` if the
    test split is known.
    """
    known = {
        "data": images.fingerprint,
        "teacher": teachers,
        "class_names": fingerprint_of_names(images.class_names),
        "recipe": run_folder.training_fingerprint(recipe),
    }
    return known if test is None else known | {"test": test.fingerprint}
