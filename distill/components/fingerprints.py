"""Compute the fingerprints of a run's data, classes, teachers, recipe and test split.

Checkpoints and result.json contain the fingerprints; those of a resumed run must be the same.
"""

from distill.components.read_test_split import SplitIdentity
from distill.data.image_set import ImageSet
from distill.files.run_json_schemas import fingerprint_of_names
from distill.recipe.recipes import Recipe
from distill.runs import check_runs_match

CACHED = ("data", "teacher")  # fingerprints of what cached teacher logits depend on
CALLED = {  # the names in messages
    "data": "data",
    "teacher": "teacher",
    "class_names": "class names",
    "recipe": "recipe",
    "test": "test split",
}


def identity(
    recipe: Recipe, images: ImageSet, teachers: str, test: SplitIdentity | None = None
) -> dict[str, str]:
    """Return the fingerprints of a run's inputs by name.

    The names are `data` (the train split), `teacher`, `class_names`, `recipe` (the keys that affect
    training), and `test` if the test split is given. `teachers` is the teachers' fingerprint,
    computed by the caller.
    """
    fingerprints = {
        "data": images.fingerprint,
        "teacher": teachers,
        "class_names": fingerprint_of_names(images.class_names),
        "recipe": check_runs_match.training_fingerprint(recipe),
    }
    return fingerprints if test is None else fingerprints | {"test": test.fingerprint}
