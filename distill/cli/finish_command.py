"""The command `finish`: make a run that was cut off a finished run."""

from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.options import DataOption, RunArgument
from distill.cli.stdout_and_stderr import echo, is_main, quiet_on_error
from distill.cli.train_commands import explain_interruption, follow, print_closing_table
from distill.errors import UserError
from distill.files.escape_text import shell_word

if TYPE_CHECKING:
    from distill.recipe.recipes import Recipe
    from distill.runs.run_folder import Role, RunFolder

MovedTeacherOption = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        "-t",
        help="The teacher's run folder, if it was moved; repeatable.",
        show_default="the run's",
    ),
]


def finish_early(
    run: RunArgument, teacher: MovedTeacherOption = [], data: DataOption = None
) -> None:
    """Finish a run that was cut off: test its best weights so far and save them as the final ones.

    Afterwards evaluate, predict, export and report accept it; it is marked as finished early.
    """
    from distill.runs import run_folder

    folder = run_folder.open_run(run)
    role, recipe = _role_of_unfinished(folder), _recipe(folder, teacher, data)
    from distill.training.signals import StopSignal

    stop = StopSignal()
    again = "To finish it, type the same command again"
    with stop.handle_signals(), explain_interruption(folder, again):
        from distill.training.run import TrainingRequest

        request = TrainingRequest(
            role, recipe, _name(folder), folder.path, resume=True, stop=stop, ends_early=True
        )
        follow(request, folder, [])
    if is_main():
        if early := run_folder.early_end(folder.result()):
            echo(f"{folder.path} was finished early, {early}.", err=True)
        with quiet_on_error("stdout"):
            print_closing_table(folder)


def _role_of_unfinished(folder: "RunFolder") -> "Role":
    """Return the role of an unfinished run with a checkpoint.

    Raises UserError if the run is finished, if a process trains in it, or if it has no readable
    checkpoint.
    """
    from distill.runs import lock, run_folder
    from distill.runs.commands_to_repeat import continue_line

    path, quoted = folder.path, shell_word(str(folder.path))
    if folder.is_finished:
        raise UserError(
            f"run {path} is finished already: there is nothing to finish.\n"
            f"Measure it with python cli.py evaluate {quoted}."
        )
    holder, is_alive = lock.read_holder(path)
    if is_alive:
        raise UserError(
            f"{path} is in use: {holder} trains in it.\n"
            f"Stop that process, which saves a checkpoint, and type python cli.py finish {quoted} "
            "again; or wait until it has finished the run."
        )
    if not folder.last.exists() and not folder.last.with_name("last.old").exists():
        raise UserError(
            f"run {path} has no checkpoint, so it has no weights to finish with.\n"
            f"{continue_line(folder)}"
        )
    role = run_folder.role_begun(folder)
    if role is None:
        raise UserError(
            f"run {path} cannot be finished: the progress.json of its checkpoint is damaged.\n"
            "Restore the checkpoint, or train again in another --out."
        )
    return role


def _recipe(folder: "RunFolder", teachers: list[str], data: str | None) -> "Recipe":
    """Return the run's recipe, with the new paths of teachers and images if they were moved.

    Their fingerprints are compared with the checkpoint's.
    """
    from distill.recipe import recipe_variants, recipes

    recipe = recipes.read(folder.recipe)
    if teachers:
        recipe = recipe_variants.with_teacher(recipe, tuple(teachers))
    return recipe if data is None else recipe_variants.with_source(recipe, data)


def _name(folder: "RunFolder") -> str:
    """Return the name of the run's recipe as its training was started with it."""
    from distill.runs import journal

    names = [row.get("recipe") for row in journal.read(folder.journal) if row["event"] == "start"]
    return str(names[-1] or folder.recipe.stem) if names else folder.recipe.stem
