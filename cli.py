"""Understudy: train a large teacher from scratch and distil it into a ResNet under 5M parameters.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 the run failed; 2 the request
was wrong; 130 interrupted; 143 terminated.
"""

import sys
from typing import Annotated

import typer

from distill.cli import (
    cache_commands,
    data_command,
    doctor_command,
    finish_command,
    import_command,
    recipe_plan_design_commands,
    run_commands,
    seeds_sweep_search_commands,
    study_command,
)
from distill.cli.options import (
    DataOption,
    OutOption,
    RecipeOption,
    ResumeOption,
    SetOption,
    TeacherOption,
    TrackerOption,
    TrainingCommand,
)
from distill.cli.stdout_and_stderr import (
    escape_unencodable,
    flush_stdout,
    is_wrong_path,
    limit_text,
    only_first_process_prints,
    print_failure,
    print_lost_process,
    quiet_on_error,
)
from distill.cli.train_commands import resolve, train
from distill.errors import Failure, UserError
from distill.runs.commands_to_repeat import advice_on_unfinished
from distill.runs.run_folder import NotFinished

VERSION = "0.1.0"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=__doc__.split("\n\n")[0] if __doc__ else None,
)
app.add_typer(data_command.app, name="data")
app.add_typer(cache_commands.app, name="cache")


def print_version(is_requested: bool) -> None:
    """Print the version and end the command, if `--version` is given."""
    if is_requested:
        typer.echo(f"understudy {VERSION}")
        raise typer.Exit


@app.callback()
def options_of_all_commands(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Declare the options that come before the name of a command."""


@app.command(cls=TrainingCommand)
def train_teacher(
    recipe: RecipeOption = "teacher_wrn",
    data: DataOption = None,
    set_: SetOption = [],
    out: OutOption = None,
    resume: ResumeOption = False,
    tracker: TrackerOption = [],
) -> None:
    """Train a teacher from scratch."""
    from distill.recipe import check_recipe_role

    resolved = resolve(recipe, data, set_)
    check_recipe_role.check_teacher(resolved)
    train("teacher", resolved, out, resume, tracker)


@app.command(cls=TrainingCommand)
def distill(
    recipe: RecipeOption = "kd_cutmix",
    teacher: TeacherOption = [],
    data: DataOption = None,
    set_: SetOption = [],
    out: OutOption = None,
    resume: ResumeOption = False,
    tracker: TrackerOption = [],
) -> None:
    """Train a student, with a teacher if the recipe needs one."""
    from distill.recipe import check_recipe_role

    resolved = resolve(recipe, data, set_, teacher)
    check_recipe_role.check_student(resolved)
    train("student", resolved, out, resume, tracker)


for _command in (
    run_commands.evaluate,
    run_commands.predict,
    run_commands.runs,
    run_commands.compare,
    run_commands.export,
    run_commands.replay,
    run_commands.report,
    recipe_plan_design_commands.params,
    recipe_plan_design_commands.plan,
    recipe_plan_design_commands.design,
    recipe_plan_design_commands.recipes,
    study_command.study,
    seeds_sweep_search_commands.seeds,
    seeds_sweep_search_commands.sweep,
    seeds_sweep_search_commands.search,
    import_command.import_teacher,
    doctor_command.doctor,
):
    app.command()(_command)
app.command("finish")(finish_command.finish_early)


LOST = (
    "The command failed: another of its processes ended, hangs or cannot be reached.\n"
    "Start all of them again."
)


def main() -> None:
    """Run the command line.

    An error prints one message and exits with 2 if the request was wrong, with 1 if the run failed.
    """
    escape_unencodable()
    with only_first_process_prints(), quiet_on_error("stderr"):
        try:
            with flush_stdout():
                app()
        except (UserError, Failure) as fault:
            print_failure(with_advice(fault))
            sys.exit(2 if isinstance(fault, UserError) else 1)
        except (OSError, MemoryError) as fault:
            message = limit_text(fault)
            if message is None:  # an error in this program: Python prints the traceback
                raise
            print_failure(message)
            sys.exit(2 if is_wrong_path(fault) else 1)
        except RuntimeError as fault:
            from distill.components.check_processes import is_lost_process

            if not is_lost_process(fault):
                raise
            print_lost_process(LOST)
            sys.exit(1)


def with_advice(fault: UserError | Failure) -> UserError | Failure:
    """Return an error; that of an unfinished run with the commands that continue it."""
    if isinstance(fault, NotFinished):
        return UserError(f"{fault.found}\n{advice_on_unfinished(fault.run)}")
    return fault


if __name__ == "__main__":
    main()
