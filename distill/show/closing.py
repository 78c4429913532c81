"""The rows of a closing table: a run's teachers, the same student alone if known, and the run itself."""

from pathlib import Path

from distill import recipe as recipes
from distill.events import measure_name
from distill.run_folder import RunFolder, runs_in
from distill.show.display import Row


def closing_rows(run: RunFolder) -> list[Row]:
    """Rows of a finished run and of the finished runs it is read beside."""
    result = run.result()
    if result["role"] == "teacher":
        return [_row("teacher", run)]
    teachers = [RunFolder(Path(path)) for path in result["teacher"]["runs"]]
    if not teachers:
        return [_row("student alone", run)]
    alone = student_alone(run)
    return [
        *(_row("teacher", teacher) for teacher in teachers if teacher.is_finished),
        *([_row("student alone", alone)] if alone is not None else []),
        _row("distilled student", run),
    ]


def student_alone(run: RunFolder) -> RunFolder | None:
    """The newest finished control beside a distilled run: the same recipe without a teacher.

    Data is compared by its images, not by the path they were read from.
    """
    result = run.result()
    wanted = recipes.fingerprint(_comparable(recipes.control(recipes.read(run.recipe))))
    for other in runs_in(run.path.parent):
        if other.is_finished and other.result()["role"] == "student":
            same_data = other.result()["data"]["fingerprint"] == result["data"]["fingerprint"]
            if same_data and recipes.fingerprint(_comparable(recipes.read(other.recipe))) == wanted:
                return other
    return None


def _comparable(recipe: recipes.Recipe) -> recipes.Recipe:
    """A recipe without what does not matter between a run and its control: the teacher and the path."""
    data = recipe.data.model_copy(update={"source": ""})
    return recipe.model_copy(update={"teacher": None, "data": data})


def _row(name: str, run: RunFolder) -> Row:
    result = run.result()
    metrics = result["metrics"]
    averaged = metrics.get(measure_name("top1", "val_ema"))
    return Row(
        name=name,
        network=result["network"],
        parameters=result["parameters"],
        top1_val=metrics.get(measure_name("top1", "val")) if averaged is None else averaged,
        top1_test=metrics[measure_name("top1", "test")],
        time_s=result["elapsed_s"],
        epochs=result["epochs"],
    )
