"""Compare runs: their recipes, their teachers' weights and their test splits."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill.errors import UserError
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.recipe.schema import LOGGING_AND_SAVING, Teacher
from distill.runs.run_folder import RunFolder, file_sha256, open_finished

NOT_FINGERPRINTED = {f"train.{name}" for name in LOGGING_AND_SAVING}
TESTED = {  # keys of "data" in result.json that identify the test split
    "test split": "test_fingerprint",
    "class names": "class_names_fingerprint",
}


def check_same(folder: RunFolder, recipe: Recipe) -> None:
    """Raise UserError, with the keys that differ, if the run began with another recipe.

    If the recipe names no teachers, it has those of the run. Named teachers may be in other folders
    than before: their weights must be the same, which are compared here if the run is finished, and
    with the checkpoint when it is resumed. A run that began with the TrivialAugment of an earlier
    version, which has other strengths and another position, is refused too.
    """
    began_with = recipes.read(folder.recipe)
    if began_with.augment.trivial and "before_crop" not in folder.recipe.read_text():
        raise UserError(
            f"{folder.path} cannot be resumed: it began with another augment.trivial, which had "
            "no before_crop and other strengths.\nChoose another --out."
        )
    if began_with.teacher and not (recipe.teacher and recipe.teacher.runs):
        recipe = recipes.with_teacher(recipe, began_with.teacher.runs)
    differing = {line.split(":")[0]: line for line in recipes.differences(began_with, recipe)}
    changed = [
        line for key, line in differing.items() if key not in {*NOT_FINGERPRINTED, "teacher.runs"}
    ]
    if not changed and "teacher.runs" in differing and folder.is_finished:
        changed = _changed_teachers(folder, recipe)
    if changed:
        raise UserError(
            f"{folder.path} cannot be resumed: the recipe is not the one it began with:\n  "
            + "\n  ".join(changed)
            + "\nGive the same recipe and --set values, or choose another --out."
        )


def _changed_teachers(folder: RunFolder, recipe: Recipe) -> list[str]:
    """Return one line if the recipe's teachers have other weights than those that the finished run
    used, otherwise an empty list. Raises UserError if a teacher is not a finished run.
    """
    before = folder.result()["teacher"]["fingerprint"]
    today = teachers_fingerprint(open_finished(path) for path in (recipe.teacher or Teacher()).runs)
    return [] if today == before else [f"the teacher's weights: {before} -> {today}"]


def teachers_fingerprint(runs: Iterable[RunFolder]) -> str:
    """Return the fingerprint of the teachers' weights: the sha256 of each file, hex, joined by `+`;
    empty without a teacher.
    """
    return "+".join(file_sha256(run.weights(run.role)) for run in runs)


def has_recipe_of_result(run: RunFolder) -> bool:
    """Whether a finished run's recipe.toml is the one in its result.json, apart from [about] and
    the paths of data and teachers, which may have been moved.

    True for a result of an earlier version without the fingerprint. Two fingerprints are valid: of
    all keys, and of those in the file, which is what a version without the later keys computed.
    Raises UserError if a file cannot be read.
    """
    result = run.result()
    recorded = result.get("recipe_fingerprint")
    if recorded is None:
        return True
    recipe = recipes.read(run.recipe)
    as_recorded = recipes.with_source(recipe, result["data"]["source"])
    if recipe.teacher is not None and result.get("teacher"):
        as_recorded = recipes.with_teacher(as_recorded, result["teacher"]["runs"])
    return recorded in (
        recipes.fingerprint(recipe),
        recipes.fingerprint(as_recorded),
        recipes.fingerprint_as_written(run.recipe),
    )


def check_recipe_of_result(run: RunFolder) -> None:
    """Raise UserError if a finished run's recipe.toml was changed: it may describe another network
    that takes the same weights.
    """
    if not has_recipe_of_result(run):
        raise UserError(
            f"{run.recipe} is not the recipe that its run finished with: its fingerprint is not "
            f"the one in {run.result_file.name}.\nRestore the file, or train the run again."
        )


def training_fingerprint(recipe: Recipe) -> str:
    """Return the SHA-256, hex, of the keys that differ from their defaults, without [about],
    NOT_FINGERPRINTED, and the paths of images and teachers, which have fingerprints of their own.

    A key that a later version adds, at its default, does not change it.
    """
    content = recipe.model_dump(mode="json", exclude={"about"}, exclude_defaults=True)
    for key in (*NOT_FINGERPRINTED, "data.source", "teacher.runs"):
        table, _, name = key.partition(".")
        content.get(table, {}).pop(name, None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def test_split_differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names in TESTED by which the results differ. A result of an earlier version, which
    lacks the keys, differs from none.
    """
    fingerprints = {
        name: {result["data"].get(key) for result in results} - {None}
        for name, key in TESTED.items()
    }
    return [name for name, values in fingerprints.items() if len(values) > 1]


def missing_test_split_note(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a list with one note if some results have no fingerprint of their test split;
    otherwise an empty list.
    """
    n = sum(TESTED["test split"] not in result["data"] for result in results)
    if not n:
        return []
    verbs = ("is", "has") if n == 1 else ("are", "have")
    return [
        f"{n} of {len(results)} results {verbs[0]} of an earlier version and {verbs[1]} no "
        "fingerprint of the test split: it is unknown whether all were tested on the same images."
    ]
