"""Understudy: a large teacher, trained from scratch on CIFAR-10, teaches a ResNet under 5,000,000 parameters.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 the run failed; 2 the request was wrong;
130 interrupted.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from distill.recipe import Resolved
    from distill.run_folder import Role

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__.split("\n\n")[0] if __doc__ else None,
)
data_app = typer.Typer(no_args_is_help=True, help="The images.")
app.add_typer(data_app, name="data")

RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="A name, a path ending in .toml, or a+b+c.")
]
SetOption = Annotated[
    list[str], typer.Option("--set", "-s", help="key=value, over everything else; repeatable.")
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", "-d", help="synthetic, cifar10, cifar100 or a path [the recipe's]."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The run folder itself [runs/<recipe>-<time>].")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint of --out, if any.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder.")]


@app.command()
def train_teacher(
    recipe: RecipeOption = "teacher_wrn",
    data: DataOption = None,
    set_: SetOption = [],
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train a teacher from scratch."""
    from distill import recipe as recipes

    resolved = _resolve(recipe, data, set_)
    recipes.check_teacher(resolved)
    _train("teacher", resolved, out, resume)


@app.command()
def distill(
    recipe: RecipeOption = "kd_cutmix",
    teacher: Annotated[
        list[str],
        typer.Option(
            "--teacher", "-t", help="A teacher's run folder [the newest]; several: their mean."
        ),
    ] = [],
    data: DataOption = None,
    set_: SetOption = [],
    out: OutOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train a student, with a teacher where the recipe wants one."""
    from distill import recipe as recipes

    resolved = _resolve(recipe, data, set_, teacher)
    recipes.check_student(resolved)
    _train("student", resolved, out, resume)


@app.command()
def evaluate(run: RunArgument, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Measure a finished run on the test split: top-1, negative log-likelihood, calibration error."""
    from distill import run_folder
    from distill.engine.run import evaluate as measure
    from distill.engine.run import processes
    from distill.show.display import Display

    with processes(), Display(_stderr()) as display:
        measured = measure(run_folder.opened(run), data, progress=display.progress)
    _print(measured, as_json)


@app.command()
def params(
    recipe: RecipeOption = "kd_cutmix", set_: SetOption = [], as_json: JsonOption = False
) -> None:
    """Count a recipe's student: parameters, multiply-accumulates, the budget."""
    from distill import recipe as recipes

    _print(recipes.count(recipe, set_), as_json)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="A recipe to print, resolved, with every value's origin.")
    ] = None,
    set_: SetOption = [],
) -> None:
    """List the recipes, or print one as it will be run."""
    from distill import recipe as room
    from distill.show.tables import recipe_origins, recipe_table

    if name is None:
        _stdout().print(recipe_table(room.shipped()))
    else:
        _stdout().print(recipe_origins(room.load(name, set_)), highlight=False, soft_wrap=True)


@data_app.command()
def info(
    source: Annotated[
        str, typer.Argument(help="synthetic, cifar10, cifar100 or a path.")
    ] = "cifar10",
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a set holds, and whether it is the genuine CIFAR-10, whatever its container or order."""
    from distill.data import sources
    from distill.show.display import Display

    with Display(_stderr()) as display:
        facts = sources.info(data or source, progress=display.progress)
    _print(facts, as_json)


def _resolve(
    recipe: str, data: str | None, overrides: list[str], teachers: list[str] | None = None
) -> "Resolved":
    """The recipe as it will be run, the door's own options last."""
    from distill import recipe as recipes

    chosen = [f"data.source={json.dumps(data)}"] if data is not None else []
    if teachers:
        chosen.append(f"teacher.runs={json.dumps(teachers)}")
    return recipes.load(recipe, [*overrides, *chosen])


def _train(role: "Role", resolved: "Resolved", out: Path | None, resume: bool) -> None:
    """Run to the end; rank 0 shows and keeps every event."""
    from distill.engine.run import Request, processes, run
    from distill.events import Start
    from distill.run_folder import RunFolder
    from distill.show.closing import closing_rows
    from distill.show.display import Display, closing_table
    from distill.show.journal import Journal

    if out is not None and resume and RunFolder(out).is_finished:
        typer.echo(f"{out} is finished: nothing to do.", err=True)
        return
    request = Request(role, resolved.recipe, resolved.name, out, resume)
    folder: RunFolder | None = None
    journal: Journal | None = None
    try:
        with processes(), Display(_stderr()) as display:
            for event in run(request, progress=display.progress):
                if isinstance(event, Start) and _is_main():
                    folder = RunFolder(Path(event.run))
                    journal = Journal(folder.journal)
                display(event)
                if journal is not None:
                    journal(event)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. The same command with --out and --resume goes on.", err=True)
        raise typer.Exit(130) from None
    if folder is not None:
        _stdout().print(closing_table(closing_rows(folder)))


def _is_main() -> bool:
    """Whether this is the process that speaks, before accelerate knows."""
    return os.environ.get("RANK", "0") == "0"


def _stderr() -> "Console":
    """Where a person looks; silent in every process but the first."""
    from rich.console import Console

    return Console(stderr=True, quiet=not _is_main())


def _stdout() -> "Console":
    from rich.console import Console

    return Console()


def _print(values: dict[str, Any], as_json: bool) -> None:
    """A small table of names and values, or the same as JSON."""
    from distill.show.tables import fact_table

    if as_json:
        typer.echo(json.dumps(values))
    else:
        _stdout().print(fact_table(values))


def main() -> None:
    """The door: a wrong request is one message and exit 2, never a traceback."""
    try:
        app()
    except UserError as fault:
        if _is_main():
            typer.echo(str(fault), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
