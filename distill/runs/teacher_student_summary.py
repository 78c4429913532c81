"""Summarise a finished run: the student, its teachers and the same student trained alone."""

from dataclasses import dataclass

from distill.errors import UserError
from distill.events import Split, measure_name
from distill.format import counted, percent
from distill.recipe import recipe_variants, recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.recipes import Recipe
from distill.runs import read_predictions
from distill.runs.check_runs_match import (
    check_recipe_of_result,
    teachers_of,
    test_split_differences,
)
from distill.runs.run_folder import RunFolder, early_end, is_tested, runs_in_same_folder


@dataclass(frozen=True)
class ClosingRow:
    """A network's row in the table that is shown after a run.

    Accuracies are 0..1; None is an unknown value.
    """

    name: str  # "teacher", "alone" (the student without a teacher) or "distilled"
    network: str
    parameters: int | None = None
    top1_val: float | None = None  # of the final weights
    top1_test: float | None = None
    training_s: float | None = None
    total_s: float | None = None  # with preparation and the test; None for runs of old versions
    val_split: Split = "val"  # "val_ema" if the final weights are averaged


def closing_rows(run: RunFolder) -> list[ClosingRow]:
    """Return a row for a finished run, one for each teacher, and one for the student trained alone.

    The student trained alone is left out if no such run is found (see `student_alone`). Raises
    UserError if `run` is not finished.
    """
    result = run.result()
    if result["role"] == "teacher":
        return [summary_row("teacher", run)]
    if not result["teacher"]["runs"]:
        return [summary_row("alone", run)]
    alone = student_alone(run)
    return [
        *(_teacher_row(teacher, fault) for teacher, fault in teachers_of(result)),
        *([summary_row("alone", alone)] if alone is not None else []),
        summary_row("distilled", run),
    ]


def student_alone(run: RunFolder) -> RunFolder | None:
    """Return the newest finished run of the same recipe without a teacher; None if there is none.

    It is searched for in the folder that contains `run`. Its data must have the same images, but
    may have another path. If one of both was finished early, so must the other be, at the same
    step.
    """
    result = run.result()
    role_and_data = "student", result["data"]["fingerprint"]
    control = _comparable(recipe_variants.control_recipe(recipes.read(run.recipe)))
    for candidate in runs_in_same_folder(run):
        try:
            other = candidate.result()
            if test_split_differences([result, other]) or early_end(other) != early_end(result):
                continue
            is_same = (other["role"], other["data"]["fingerprint"]) == role_and_data
            is_control = is_same and _comparable(recipes.read(candidate.recipe)) == control
            if is_control and summary_row("alone", candidate).top1_test is not None:
                return candidate
        except (UserError, OSError):
            continue  # unfinished, broken or of another version: not an error of this run
    return None


def _comparable(recipe: Recipe) -> str:
    """Return the fingerprint of a recipe without its [teacher] table and the path of its data.

    A run and its control may differ in both.
    """
    without_path = recipe_variants.with_source(recipe, "")
    return recipe_fingerprint(without_path.model_copy(update={"teacher": None}))


def _teacher_row(run: RunFolder, fault: str) -> ClosingRow:
    """Return the row of a teacher. If the run in its folder cannot be used, it has only `fault`."""
    if fault:
        return ClosingRow("teacher", f"{run.path} {fault}")
    try:
        read_predictions.read_run(run)
        return summary_row("teacher", run)
    except UserError:
        return ClosingRow("teacher", f"{run.path} is damaged")


def summary_row(name: str, run: RunFolder) -> ClosingRow:
    """Return the row of a finished run, with the measures of its final weights.

    `name`: the row's name, such as "teacher". If the run averages its weights, the final weights
    are the average. Raises UserError if the run is not finished.
    """
    check_recipe_of_result(run)
    result = run.result()
    metrics = result["metrics"]
    averaged = metrics.get(measure_name("top1", "val_ema"))
    return ClosingRow(
        name=name,
        network=result["network"],
        parameters=result["parameters"],
        top1_val=metrics.get(measure_name("top1", "val")) if averaged is None else averaged,
        top1_test=metrics[measure_name("top1", "test")] if is_tested(result) else None,
        training_s=result["elapsed_s"],
        total_s=result.get("total_s"),
        val_split="val" if averaged is None else "val_ema",
    )


def teacher_accuracy_text(
    top1: float | None, n: int | None, val_images: int, train_images: int
) -> str:
    """Return the name and the value of the teacher's accuracy: `top1/val 95.31 %`.

    If it was measured on a part of the held-out images only, or on training images because none are
    held out, it is called so: `accuracy 95.31 % on 1,024 of 6,000 held-out images`.

    `top1`: the accuracy, 0..1, on `n` images; `n` is None if an old version measured it.
    `val_images`, `train_images`: numbers of held-out and of training images.
    """
    if top1 is None or n == val_images > 0:
        return f"{measure_name('top1', 'val')} {percent(top1)}"
    return f"accuracy {percent(top1)} on {teacher_images_text(n, val_images, train_images)}"


def teacher_images_text(n: int | None, val_images: int, train_images: int) -> str:
    """Return the images on which the teacher was measured.

    For example `1,024 of 6,000 held-out images` or `all 5,000 held-out images`. The arguments are
    those of `teacher_accuracy_text`.
    """
    total, kind = (val_images, "held-out") if val_images else (train_images, "training")
    part = "up to 1,024 of" if n is None else "all" if n == total else f"{n:,} of"
    return f"{part} {counted(total, f'{kind} image')}"
