"""Summarise a finished run: its teachers, the same student without a teacher, the student."""

from dataclasses import dataclass
from pathlib import Path

from distill.errors import UserError
from distill.events import measure_name
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import RunFolder, is_tested, runs_in, test_split_differences


@dataclass(frozen=True)
class ClosingRow:
    """One network of the closing table; shares 0..1, None where a figure is not known."""

    name: str
    network: str
    parameters: int | None = None
    top1_val: float | None = None
    top1_test: float | None = None
    time_s: float | None = None


def closing_rows(run: RunFolder) -> list[ClosingRow]:
    """Rows of a finished run and of the finished runs it is read beside.

    Raises UserError where the run is not finished.
    """
    result = run.result()
    if result["role"] == "teacher":
        return [summary_row("teacher", run)]
    teachers = [RunFolder(Path(path)) for path in result["teacher"]["runs"]]
    if not teachers:
        return [summary_row("alone", run)]
    alone = student_alone(run)
    return [
        *map(_teacher_row, teachers),
        *([summary_row("alone", alone)] if alone is not None else []),
        summary_row("distilled", run),
    ]


def student_alone(run: RunFolder) -> RunFolder | None:
    """The newest finished control beside a distilled run: the same recipe without a teacher.

    Data is compared by its images, not by the path they were read from.
    """
    result = run.result()
    ours = "student", result["data"]["fingerprint"]
    wanted = _comparable(recipes.control_recipe(recipes.read(run.recipe)))
    for other in runs_in(run.path.parent):
        try:
            known = other.result()
            theirs = known["role"], known["data"]["fingerprint"]
            if test_split_differences([result, known]):
                continue
            is_wanted = theirs == ours and _comparable(recipes.read(other.recipe)) == wanted
            if is_wanted and summary_row("alone", other).top1_test is not None:
                return other
        except (UserError, OSError):
            continue  # unfinished, broken or of another version: a neighbour ends no command
    return None


def _comparable(recipe: Recipe) -> str:
    """The identity of a recipe but for what may differ from a control: who teaches, the path."""
    anywhere = recipes.with_source(recipe, "")
    return recipes.fingerprint(anywhere.model_copy(update={"teacher": None}))


def _teacher_row(run: RunFolder) -> ClosingRow:
    """Its figures; a teacher that is gone or broken by now is named in its row."""
    if not run.is_finished:
        return ClosingRow("teacher", f"{run.path} is gone")
    try:
        return summary_row("teacher", run)
    except UserError:
        return ClosingRow("teacher", f"{run.path} is damaged")


def summary_row(name: str, run: RunFolder) -> ClosingRow:
    """The figures of the kept weights, which are averaged ones where the run has them."""
    result = run.result()
    metrics = result["metrics"]
    averaged = metrics.get(measure_name("top1", "val_ema"))
    return ClosingRow(
        name=name,
        network=result["network"],
        parameters=result["parameters"],
        top1_val=metrics.get(measure_name("top1", "val")) if averaged is None else averaged,
        top1_test=metrics[measure_name("top1", "test")] if is_tested(result) else None,
        time_s=result["elapsed_s"],
    )
