"""Check that runs belong together: same recipe, teachers' weights and test split."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import UserError
from distill.recipe import compare_recipes, recipe_variants, recipes
from distill.recipe.recipe_fingerprint import fingerprint_as_written, recipe_fingerprint
from distill.recipe.recipes import Recipe
from distill.recipe.schema import LOGGING_AND_SAVING, Teacher
from distill.runs import check_result
from distill.runs.run_folder import RunFolder, early_end, file_sha256, open_finished

NOT_FINGERPRINTED = {f"train.{name}" for name in LOGGING_AND_SAVING}  # may change on a resume
T = TypeVar("T")
Seeds = tuple[int, int]  # train.seed, data.seed
ANOTHER_RUN = "is another run now"  # why the run in a teacher's folder does not describe it
TESTED = {  # keys of "data" in result.json that identify the test split
    "test split": "test_fingerprint",
    "class names": "class_names_fingerprint",
}


def check_same(folder: RunFolder, recipe: Recipe) -> None:
    """Raise UserError, listing the keys that differ, if the run began with another recipe.

    If `recipe` names no teachers, the run's teachers are used, and if it does not say how images
    are normalised, the run's mean and std. Teachers may have moved to other
    folders, but their weights must be unchanged: they are compared here for a finished run, and
    with the checkpoint when an unfinished run is resumed. Runs that began with an earlier version's
    TrivialAugment are refused, since its strengths and its place in the augmentation order have
    changed. So is a finished run whose recipe.toml was edited to be the same, and one that was
    finished early.
    """
    began_with = recipes.read(folder.recipe)
    if began_with.augment.trivial and "before_crop" not in folder.recipe.read_text():
        raise UserError(
            f"{folder.path} cannot be resumed: it began with an earlier version of "
            "augment.trivial, without before_crop and with other strengths.\nChoose another --out."
        )
    if began_with.teacher and not (recipe.teacher and recipe.teacher.runs):
        recipe = recipe_variants.with_teacher(recipe, began_with.teacher.runs)
    recipe = recipe_variants.with_size_and_normalisation_of(recipe, began_with)
    if changed := _changed_keys(folder, began_with, recipe):
        raise UserError(
            f"{folder.path} cannot be resumed: the recipe is not the one it began with:\n  "
            + "\n  ".join(changed)
            + "\nGive the same recipe and --set values, or choose another --out."
        )
    if folder.is_finished:
        check_recipe_of_result(folder)
        check_not_finished_early(folder)


def _changed_keys(folder: RunFolder, began_with: Recipe, recipe: Recipe) -> list[str]:
    """Return a line for each fingerprinted key that differs between the two recipes.

    Folders of teachers may differ; for a finished run, their weights are compared.
    """
    differing = {
        line.split(":")[0]: line for line in compare_recipes.differences(began_with, recipe)
    }
    changed = [
        line for key, line in differing.items() if key not in {*NOT_FINGERPRINTED, "teacher.runs"}
    ]
    if not changed and "teacher.runs" in differing and folder.is_finished:
        return _changed_teachers(folder, recipe)
    return changed


def check_not_finished_early(folder: RunFolder) -> None:
    """Raise UserError if a finished run was not trained to its end, but finished early."""
    if early := early_end(folder.result()):
        raise UserError(
            f"{folder.path} was finished early, {early}: its weights were measured on the test "
            "split, and continuing would measure it a second time.\n"
            f"Train again in another --out. Or delete {folder.result_file}: --resume then "
            "continues from the last checkpoint."
        )


def _changed_teachers(folder: RunFolder, recipe: Recipe) -> list[str]:
    """Return one line if the weights of the recipe's teachers differ from those that the finished
    run in `folder` used, otherwise an empty list.

    Raises UserError if a teacher is not a finished run.
    """
    before = folder.result()["teacher"]["fingerprint"]
    today = teachers_fingerprint(open_finished(path) for path in (recipe.teacher or Teacher()).runs)
    return [] if today == before else [f"the teacher's weights: {before} -> {today}"]


def teachers_fingerprint(runs: Iterable[RunFolder]) -> str:
    """Return the sha256 of each teacher's weights file, hex, joined by `+`; empty without `runs`.

    Raises UserError if a file cannot be read.
    """
    return "+".join(file_sha256(run.weights(run.role)) for run in runs)


def teachers_of(result: Mapping[str, Any]) -> list[tuple[RunFolder, str]]:
    """Return the folder of each teacher of a run, and why it cannot be described by that folder.

    `result`: the content of result.json. The reason is empty if the finished run in the folder has
    the weights that the fingerprint in `result` names. Otherwise the run is missing or damaged, or
    the folder, whose path may be relative, holds another run now.
    """
    teacher = result["teacher"]
    digests = dict(zip(teacher["runs"], teacher["fingerprint"].split("+"), strict=False))
    return [
        (RunFolder(Path(path)), _fault_of_teacher(RunFolder(Path(path)), digests.get(path)))
        for path in teacher["runs"]
    ]


def _fault_of_teacher(run: RunFolder, digest: str | None) -> str:
    """Return why `run` is not the finished run with weights of this sha256; empty if it is."""
    try:
        if not run.is_finished:
            return "is missing"
        return "" if run.result()["weights"] == digest else ANOTHER_RUN
    except UserError:
        return "is damaged"
    except OSError:  # such as a name that is too long
        return "cannot be read"


def distinct(runs: Iterable[tuple[T, Seeds, str | None]]) -> list[T]:
    """Return the runs whose seeds and weights no earlier one has; the others are no further seed.

    `runs`: each run with its seeds and the sha256 of its weights, which is None if it is unknown.
    """
    seen: set[Seeds | str | None] = set()
    found = []
    for run, *keys in runs:
        if seen.isdisjoint(keys):
            seen |= {*keys} - {None}
            found.append(run)
    return found


def has_recipe_of_result(run: RunFolder) -> bool:
    """Whether a finished run's recipe.toml is unchanged since result.json recorded its fingerprint.

    [about] and the paths of data and teachers may have changed. True if an earlier version wrote
    result.json without a fingerprint. Two fingerprints are valid: that of all keys, and that of the
    keys in the file, which a version without the keys added later has computed. Raises UserError if
    a file cannot be read.
    """
    result = run.result()
    recorded = result.get("recipe_fingerprint")
    if recorded is None:
        return True
    recipe = recipes.read(run.recipe)
    as_recorded = recipe_variants.with_source(recipe, result["data"]["source"])
    if recipe.teacher is not None and result.get("teacher"):
        as_recorded = recipe_variants.with_teacher(as_recorded, result["teacher"]["runs"])
    return recorded in (
        recipe_fingerprint(recipe),
        recipe_fingerprint(as_recorded),
        fingerprint_as_written(run.recipe),
    )


def check_recipe_of_result(run: RunFolder) -> None:
    """Raise UserError if a finished run's recipe.toml was changed since result.json was written.

    A changed recipe may describe another network into which the weights can be loaded. Also if
    result.json has figures that contradict the recipe.
    """
    if not has_recipe_of_result(run):
        raise UserError(
            f"{run.recipe} is not the recipe that its run finished with: its fingerprint is not "
            f"the one in {run.result_file.name}.\nRestore the file, or train the run again."
        )
    check_result.check_figures(run, recipes.read(run.recipe))


def training_fingerprint(recipe: Recipe) -> str:
    """Return the SHA-256 of the keys that affect the training and differ from their defaults, hex.

    Left out are [about], the keys on logging and saving, and the paths of images and teachers,
    whose content has fingerprints of its own. Since defaults are left out, a key that a later
    version adds does not change the fingerprint of a recipe without it.
    """
    content = recipe.model_dump(mode="json", exclude={"about"}, exclude_defaults=True)
    for key in (*NOT_FINGERPRINTED, "data.source", "teacher.runs"):
        table, _, name = key.partition(".")
        content.get(table, {}).pop(name, None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def test_split_differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what differs between the test splits of several results: "test split", "class names".

    `results`: the contents of result.json. Results of earlier versions have no fingerprint of their
    test split; they are treated as equal to any other.
    """
    fingerprints = {
        name: {result["data"].get(key) for result in results} - {None}
        for name, key in TESTED.items()
    }
    return [name for name, values in fingerprints.items() if len(values) > 1]


def missing_test_split_note(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a list with one note if some results have no fingerprint of their test split.

    Otherwise the list is empty. `results`: the contents of result.json.
    """
    n = sum(TESTED["test split"] not in result["data"] for result in results)
    if not n:
        return []
    verbs = ("was", "has") if n == 1 else ("were", "have")
    return [
        f"{n} of {len(results)} results {verbs[0]} written by an earlier version and {verbs[1]} no "
        "fingerprint of the test split: it is unknown whether all were tested on the same images."
    ]
