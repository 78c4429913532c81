"""Run `train-teacher` and `distill`: start or resume, show progress, explain interruptions and
failures.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from distill.cli.stdout_and_stderr import (
    echo,
    is_main,
    loading_libraries,
    print_from_any_process,
    print_lost_process,
    quiet_on_error,
    stderr,
    stdout,
    system_error_text,
)
from distill.errors import Failure, UserError
from distill.files.escape_text import shell_word

if TYPE_CHECKING:
    from distill.recipe.recipes import ResolvedRecipe
    from distill.runs.run_folder import Role, RunFolder
    from distill.sweep.worker import Reader
    from distill.training.run import TrainingRequest


def combined_overrides(
    data: str | None, overrides: list[str], teachers: list[str] | None
) -> list[str]:
    """Return the `key=value` overrides of the options `--set`, `--data` and `--teacher`.

    If `--set` sets the key of another option too, that option is not used, and a note is printed.
    Raises UserError for a path that is not UTF-8, which recipe.toml cannot contain.
    """
    from distill.components.allow_user_code import allow_user_code
    from distill.recipe.overrides import overrides_and_notes

    combined, notes = overrides_and_notes(data, overrides, teachers)
    for note in notes:
        echo(f"note: {note}", err=True)
    allow_user_code(overrides)
    return combined


def resolve(
    recipe: str, data: str | None, overrides: list[str], teachers: list[str] | None = None
) -> "ResolvedRecipe":
    """Load a recipe with the overrides of the options `--set`, `--data` and `--teacher`.

    Raises RecipeError with every fault.
    """
    from distill.recipe import recipes

    return recipes.load(recipe, combined_overrides(data, overrides, teachers))


def train(
    role: "Role", resolved: "ResolvedRecipe", out: Path | None, resume: bool, trackers: list[str]
) -> None:
    """Train to the end; rank 0 displays and saves every event."""
    from distill.runs import run_folder

    if resume and out is None:
        raise UserError(
            "--resume continues a run, but no run was named.\n"
            f"Type it with --out RUN{run_folder.unfinished_in(run_folder.RUNS)}."
        )
    if trackers:  # checked before any work
        from distill.runs.trackers import check

        check(trackers)
    folder = run_folder.RunFolder(out or run_folder.default_path(resolved.name))
    quoted = shell_word(str(folder.path))
    resume_hint = f"To continue, type the same command with --out {quoted} --resume"
    with _offer_to_end_early(folder):
        finish(role, resolved, folder, resume, trackers, resume_hint)
    if is_main():
        with quiet_on_error("stdout"):  # the run is finished, even if its table cannot be printed
            print_closing_table(folder)


def finish(
    role: "Role",
    resolved: "ResolvedRecipe",
    folder: "RunFolder",
    resume: bool,
    trackers: list[str],
    resume_hint: str,
) -> None:
    """Train a run, or the rest of it if `resume` is True; do nothing if it is finished.

    `resume_hint`: how to continue, printed after an interruption or a failure. Raises UserError if
    the folder has a run and `resume` is False, or a run of another recipe or role.
    """
    from distill.runs import check_runs_match, run_folder

    if resume and folder.is_finished:
        run_folder.check_role(folder, role)
        check_runs_match.check_same(folder, resolved.recipe)
        echo(f"{folder.path} is finished: nothing to do.", err=True)
        return
    run_folder.check_out(folder, resume)
    from distill.training.signals import StopSignal

    stop = StopSignal()
    with (
        stop.handle_signals(),
        explain_interruption(folder, resume_hint),
    ):  # before the imports, which take seconds
        with loading_libraries():
            from distill.training.run import request_training

        follow(request_training(role, resolved, folder.path, resume, stop), folder, trackers)


def follow(
    request: "TrainingRequest",
    folder: "RunFolder",
    trackers: list[str],
    read: "Reader" = lambda event: None,
) -> None:
    """Train, and pass every event to the display, the journal, the trackers and `read`.

    `trackers`: their names. `read` may end the run by raising an exception.
    """
    from distill.runs.journal import Journal
    from distill.runs.trackers import Trackers
    from distill.terminal.progress import ProgressDisplay
    from distill.training.run import process_group, train_and_test

    journal = Journal(folder.journal)
    all_trackers = Trackers(trackers, folder, partial(echo, err=True))
    with (
        process_group(),
        ProgressDisplay(stderr()) as display,
        all_trackers,
        closing(train_and_test(request, progress=display.progress)) as events,
    ):
        for event in events:
            if is_main():
                journal(event)
                all_trackers(event)
            display(event)
            read(event)


@contextmanager
def explain_interruption(folder: "RunFolder", resume_hint: str) -> Iterator[None]:
    """Turn an interruption or failure of a run into one message and an exit code.

    `resume_hint`: the part of the message that describes how to continue.
    """
    try:
        yield
    except (UserError, typer.Exit):
        raise
    except Failure as fault:
        raise Failure(f"{fault}\n{_what_is_saved(folder)}{resume_hint}") from fault
    except OSError as fault:
        raise Failure(
            f"The run in {folder.path} failed: {system_error_text(fault)}.\n"
            f"{_what_is_saved(folder)}{resume_hint}"
        ) from fault
    except SystemExit:
        echo(f"Stopped. {resume_hint}", err=True)
        raise
    except Exception as fault:
        _raise_explained(folder, fault, resume_hint)
        raise


@contextmanager
def _offer_to_end_early(folder: "RunFolder") -> Iterator[None]:
    """Print how to finish a run that was interrupted, after how to continue it."""
    from distill.runs.commands_to_repeat import finish_line

    try:
        yield
    except (typer.Exit, SystemExit):
        for line in finish_line(folder):
            echo(line, err=True)
        raise


def _raise_explained(folder: "RunFolder", fault: Exception, resume_hint: str) -> None:
    """Print or raise a message for an expected failure of a training, and end the command.

    Expected are a signal, divergence, full memory and a lost process; for any other `fault` the
    function returns. `resume_hint`: how to continue.
    """
    from distill.components.check_processes import is_lost_process
    from distill.models.out_of_memory import OutOfMemory
    from distill.training.divergence import Diverged
    from distill.training.signals import Stopped

    if isinstance(fault, Stopped):
        echo(f"{str(fault).capitalize()}. {resume_hint}", err=True)
        raise typer.Exit(fault.code) from None
    if isinstance(fault, Diverged):
        raise Failure(
            f"The run in {folder.path} failed: {fault}.\n"
            f"To repeat that step: python cli.py replay {shell_word(str(folder.path))} --step "
            f"{fault.step}\n"
            "Then start again in another --out with a lower optim.lr or with gradient clipping, "
            "--set optim.clip=1; or resume from the last checkpoint at a lower learning rate, "
            "--resume --set train.retries=3."
        ) from None
    # Printed by the process that failed: the first process may be the one that ended.
    if isinstance(fault, OutOfMemory):
        print_from_any_process(f"The run in {folder.path} failed: {fault}")
        raise typer.Exit(1) from None
    if isinstance(fault, RuntimeError) and is_lost_process(fault):
        print_lost_process(
            f"The run in {folder.path} failed: another of its processes ended or hangs.\n"
            f"{_what_is_saved(folder)}{resume_hint}"
        )
        raise typer.Exit(1) from fault


def _what_is_saved(folder: "RunFolder") -> str:
    """Return a sentence on the last checkpoint of a failed run; empty if there is none."""
    return "Its last checkpoint is intact. " if folder.last.exists() else ""


def print_closing_table(folder: "RunFolder") -> None:
    """Print a table of the finished run, its teachers and its control, if there is one."""
    from distill.runs.teacher_student_summary import closing_rows
    from distill.terminal.progress import closing_table

    stdout().print(closing_table(closing_rows(folder)))
