"""The command `study`: a teacher, its student and the student's control, from one command."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.cli.options import DataOption, JsonOption, RecipeOption, SetOption
from distill.cli.stdout_and_stderr import echo, echo_json, is_main, stderr, stdout
from distill.cli.train_commands import finish, resolve
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.recipe.recipes import ResolvedRecipe
    from distill.runs.run_folder import Role, RunFolder
    from distill.sweep.plan_teacher_and_students import Study

AGAIN = "To continue, type the same command again"


def study(
    recipe: RecipeOption = "kd_cutmix",
    teacher: Annotated[
        list[str],
        typer.Option(
            "--teacher",
            "-t",
            help="A trained teacher's run folder, instead of training one; repeatable.",
            show_default="one is trained",
        ),
    ] = [],
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Number of students, and of controls.")
    ] = 1,
    data: DataOption = None,
    set_: SetOption = [],
    teacher_set: Annotated[
        list[str],
        typer.Option(
            "--teacher-set",
            help="key=value for the teacher only; --set data.* and teacher.* apply to it as well.",
        ),
    ] = [],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder of the runs.", show_default="runs/study-<recipe>"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe's teacher, its student and the same student alone; compare and report them.

    Type the same command again to resume: finished runs are not repeated.
    """
    from distill.runs import run_folder
    from distill.sweep import plan_teacher_and_students

    student = resolve(recipe, data, set_, teacher)
    folder = out or run_folder.RUNS / f"study-{student.name}"
    resolved_teacher = None
    if not plan_teacher_and_students.names_teachers(set_, teacher):
        resolved_teacher = _teacher_recipe(recipe, data, set_, teacher_set)
        student = resolve(recipe, data, set_, [str(folder / plan_teacher_and_students.TEACHER)])
    elif teacher_set:
        raise UserError(
            f"--teacher-set {teacher_set[0]} is for the training of a teacher, but a trained one "
            "is named.\nRemove --teacher-set, or the option that names the teacher."
        )
    _check_seeds(student, seeds)
    planned = plan_teacher_and_students.plan(student, resolved_teacher, seeds, folder)
    plan_teacher_and_students.check(planned)
    from distill.report import run_report
    from distill.teacher import selection
    from distill.training.run import process_group

    report = run_report.report_path([], folder / run_report.PAGE)
    if planned.teacher is None:
        selection.check_teachers(student.recipe)  # now, not after the control is trained
    with process_group():
        _train(planned)
        _print_and_report(planned, report, as_json)


def _teacher_recipe(
    recipe: str, data: str | None, overrides: Sequence[str], teacher_set: Sequence[str]
) -> "ResolvedRecipe":
    """Load the recipe of the teacher that a recipe names in its [about]."""
    from distill.sweep.plan_teacher_and_students import teacher_recipe

    spec, own = teacher_recipe(recipe, overrides)
    return resolve(spec, data, [*own, *teacher_set])


def _check_seeds(student: "ResolvedRecipe", seeds: int) -> None:
    """Raise UserError if several seeds are requested and --set sets one."""
    fixed = [key for key in ("train.seed", "data.seed") if student.origins[key] == "--set"]
    if seeds > 1 and fixed:
        raise UserError(
            f"--seeds {seeds} sets {' and '.join(fixed)} itself, starting at 0.\n"
            "Remove that --set, or --seeds."
        )


def _train(planned: "Study") -> None:
    """Train every run that is not finished: the teacher, then each student and its control."""
    runs: list[tuple[Role, ResolvedRecipe, RunFolder]] = []
    if planned.teacher is not None:
        runs.append(("teacher", *planned.teacher))
    runs += [(run.role, run.resolved, run.folder) for run in planned.students]
    for number, (role, resolved, folder) in enumerate(runs, start=1):
        echo(f"run {number} of {len(runs)}: {folder.path.name}", err=True)
        finish(role, resolved, folder, folder.is_run, [], AGAIN)


def _print_and_report(planned: "Study", report: Path, as_json: bool) -> None:
    """Write the report of a study's runs and print their table. Called by all processes."""
    if len(planned.students) > 2:
        _print_seeds(planned, report, as_json)
    else:
        _print_student_and_control(planned, report, as_json)


def _write_report(planned: "Study", report: Path) -> None:
    from distill.report import comparison
    from distill.sweep.plan_teacher_and_students import finished_runs

    if is_main():
        comparison.write(finished_runs(planned), report)


def _print_seeds(planned: "Study", report: Path, as_json: bool) -> None:
    from distill.sweep import train_over_seeds
    from distill.terminal.seeds_table import seeds_table

    _write_report(planned, report)
    summary = train_over_seeds.summary(planned.students)
    for note in summary.get("notes", []):
        echo(f"note: {note}", err=True)
    _print(summary, report, as_json, seeds_table(summary))


def _print_student_and_control(planned: "Study", report: Path, as_json: bool) -> None:
    """Evaluate student and control; print the measures, the study's table and the difference.

    The difference is that of the predictions just computed, not of those in the runs' files.
    """
    from dataclasses import asdict

    from rich.console import Group

    from distill.evaluation.evaluate_run import EvalOptions, evaluate
    from distill.runs.compare_two_runs import compare
    from distill.runs.teacher_student_summary import closing_rows
    from distill.terminal.evaluation_tables import evaluation_tables
    from distill.terminal.progress import ProgressDisplay, closing_table

    alone, distilled = (run.folder for run in planned.students)
    with ProgressDisplay(stderr()) as display:
        options = EvalOptions(against=alone.path)
        evaluation = evaluate(distilled, options, progress=display.progress)
    _write_report(planned, report)  # after the files were compared with the networks
    measured, rows = evaluation.measures, closing_rows(distilled)
    compared = compare(alone.path, distilled.path, evaluation.predictions)
    facts = {
        "rows": [asdict(row) for row in rows],
        "evaluation": measured,
        "difference": compared.difference,
        "interval": compared.difference_interval,
        "p": compared.p,
    }
    findings = f"A is {alone.path.name}, B is {distilled.path.name}. {compared.says}"
    shown = Group(evaluation_tables(measured), closing_table(rows), "", findings)
    _print(facts, report, as_json, shown)


def _print(facts: dict[str, Any], report: Path, as_json: bool, shown: Any) -> None:
    if as_json:
        echo_json(facts | {"report": str(report)})
    else:
        stdout().print(shown, highlight=False)
        echo(report)
