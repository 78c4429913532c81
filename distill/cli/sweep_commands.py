"""The commands over many runs: `seeds`, `sweep` and `search`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.cli.console import echo, echo_json, stdout, system_error_text
from distill.cli.options import (
    AsymmetricOption,
    BlocksOption,
    BudgetOption,
    DataOption,
    JsonOption,
    RecipeOption,
    SetOption,
    StagesOption,
    StorageOption,
    TeacherOption,
    numbers,
)
from distill.cli.train_commands import combined_overrides, finish, follow, resolve
from distill.errors import Failure, UserError

if TYPE_CHECKING:
    from distill.recipe.recipes import ResolvedRecipe
    from distill.runs.run_folder import Role, RunFolder
    from distill.sweep.storage import Storage
    from distill.sweep.worker import Reader, Say, Train

GO_ON = "Its trial is left to the others. Type the same again to go on."
HEARTBEAT_S = 20  # of a search's workers; who is silent for three of them is taken for dead


def seeds(
    recipe: RecipeOption = "kd_cutmix",
    n: Annotated[int, typer.Option("--n", help="How many seeds: 0, 1, …")] = 5,
    teacher: TeacherOption = [],
    data: DataOption = None,
    set_: SetOption = [],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where the runs lie.", show_default="runs/seeds-<recipe>"),
    ] = None,
    control: Annotated[
        bool, typer.Option(help="Beside each seed the student alone, where the recipe is taught.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe under several seeds: mean, spread, and the paired difference to its control.

    Runs that are finished are not repeated, one that was broken off goes on: type the same again.
    """
    from distill.runs import run_folder
    from distill.sweep import seeds as study
    from distill.terminal.seeds_table import seeds_table

    resolved = resolve(recipe, data, set_, teacher)
    if fixed := [key for key in ("train.seed", "data.seed") if resolved.origins[key] == "--set"]:
        raise UserError(
            f"seeds varies {' and '.join(fixed)} itself, from 0 on.\n"
            "Leave that --set away; --n says how many."
        )
    place = out or run_folder.RUNS / f"seeds-{resolved.name}"
    planned = study.plan(resolved, range(n), place, controls=control)
    study.check(planned)
    from distill.training.run import process_group

    with process_group():
        for each in planned:
            taught = study.with_same_teacher(each, planned[0])
            resume, go_on = each.folder.is_run, "To go on, type the same command again"
            finish(each.role, taught, each.folder, resume, [], go_on)
    said = study.summary(planned)
    for note in said.get("notes", []):
        typer.echo(f"note: {note}", err=True)
    if as_json:
        echo_json(said)
    else:
        stdout().print(seeds_table(said))


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A sweep: recipe, trials, space, constraint.")
    ],
    teacher: TeacherOption = [],
    data: DataOption = None,
    set_: SetOption = [],
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="How many.", show_default="the file's")
    ] = None,
    storage: StorageOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where the runs lie.", show_default="runs/sweep-<file>"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Vary a recipe's keys by a file: trials by TPE, ended early where they fall behind.

    The same command on more machines, with one --storage, are more workers. Typed again it goes on.
    """
    from distill.runs import run_folder
    from distill.sweep import sweep_file

    planned = sweep_file.load(file, combined_overrides(data, set_, teacher), trials)
    place = out or run_folder.RUNS / f"sweep-{planned.name}"
    heartbeat_s = planned.file.study.heartbeat_s
    base = planned.base.recipe
    with _worker(place, storage, heartbeat_s) as (opened, train, say):
        from distill.sweep.sweep_summary import run_sweep
        from distill.sweep.worker import variants
        from distill.teacher import selection

        inputs = selection.check_teachers(base, variants(planned))
        said = run_sweep(planned, opened(), place, train, say, inputs)
    _show_sweep(said, place, as_json)


def search(
    recipe: RecipeOption = "kd_cutmix",
    max_params: BudgetOption = 5_000_000,
    stages: StagesOption = "2-5",
    blocks: BlocksOption = "1-7",
    asymmetric: AsymmetricOption = False,
    rules: Annotated[
        str, typer.Option("--rules", help="A course's: nyu2022 or nyu2025.")
    ] = "nyu2022",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of the last rung.")] = 27,
    rungs: Annotated[int, typer.Option("--rungs", min=1, help="How many.")] = 3,
    eta: Annotated[
        int, typer.Option("--eta", min=2, help="One of so many goes on, for so many times longer.")
    ] = 3,
    teacher: TeacherOption = [],
    data: DataOption = None,
    set_: SetOption = [],
    storage: StorageOption = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="In the storage.", show_default="search-<recipe>"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where the runs lie.", show_default="runs/<name>"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find a student's design: every legal one for a short while, the best for longer, and longer.

    The same command on more machines, with one --storage, are more workers. Typed again it goes on.
    """
    from distill.recipe import recipes
    from distill.runs import run_folder

    chosen = combined_overrides(data, set_, teacher)
    resolved = recipes.load(recipe, chosen)
    if resolved.recipe.train.epochs is None or resolved.origins["train.epochs"] == "--set":
        raise UserError(
            "search sets train.epochs itself, and no train.minutes beside it.\n"
            "Leave that --set away; type --epochs N."
        )
    name = name or f"search-{resolved.name}"
    place = out or run_folder.RUNS / name
    depths = numbers("--stages", stages), numbers("--blocks", blocks, 0 if asymmetric else 1)
    with _worker(place, storage, HEARTBEAT_S) as (opened, train, say):
        from distill.sweep import successive_halving as room
        from distill.teacher import selection

        designs, too_many = room.legal_designs(
            resolved.recipe, rules, max_params, *depths, asymmetric=asymmetric
        )
        asked = room.Search(
            recipe, tuple(chosen), tuple(designs), too_many, epochs, rungs, eta, name
        )
        inputs = selection.check_teachers(resolved.recipe)
        said = room.search(asked, opened(), place, train, say, inputs)
    _show_sweep(said, place, as_json)


@contextmanager
def _worker(
    place: Path, url: str | None, heartbeat_s: int
) -> Iterator[tuple[Callable[[], "Storage"], "Train", "Say"]]:
    """What a worker of a sweep needs: the storage, how a run is trained, where to say what.

    The storage is opened by a call, for images and teachers are to be read before. What ends the
    worker early is one message and an exit code.
    """
    from distill.runs import run_folder
    from distill.training.signals import StopSignal

    if "WORLD_SIZE" in os.environ:
        raise UserError("a sweep's worker is one process; start several, each by the same command.")
    run_folder.check_writable(place, "the place of a sweep")
    stop = StopSignal()
    with stop.handle_signals(), _explain_abandoned_trial(place):
        from distill.training.run import TrainingRequest, process_group

        try:
            from distill.sweep.storage import Storage, url_of
        except ModuleNotFoundError as fault:
            raise UserError(
                f"a sweep needs the package {fault.name}, which is not installed.\n"
                "Type uv pip install -r pyproject.toml --extra sweep, or "
                "pip install optuna 'psycopg[binary]'."
            ) from fault

        def train(resolved: "ResolvedRecipe", folder: "RunFolder", read: "Reader") -> None:
            role: Role = "student" if resolved.recipe.student else "teacher"
            resume, origins = folder.is_run, resolved.origins
            request = TrainingRequest(
                role,
                resolved.recipe,
                resolved.name,
                folder.path,
                resume,
                stop,
                origins,
                is_tested=False,
            )
            try:
                follow(request, folder, [], read)
            except Failure as fault:
                raise Failure(f"{fault}\n{GO_ON}") from fault

        with process_group():

            def opened() -> Storage:
                return Storage(url_of(url, place), heartbeat_s)

            yield opened, train, partial(echo, err=True)


@contextmanager
def _explain_abandoned_trial(place: Path) -> Iterator[None]:
    """A worker that ends early says what becomes of its trial."""
    from distill.models.out_of_memory import OutOfMemory
    from distill.training.signals import Stopped

    left = f"Stopped; its trial is left to the others. Type the same again to go on in {place}."
    try:
        yield
    except Stopped as fault:
        echo(left, err=True)
        raise typer.Exit(fault.code) from None
    except SystemExit:
        echo(left, err=True)
        raise
    except OutOfMemory as fault:
        raise Failure(f"The sweep in {place} ends here: {fault}\n{GO_ON}") from None
    except OSError as fault:
        raise Failure(
            f"The sweep in {place} failed: {system_error_text(fault)}.\n{GO_ON}"
        ) from fault


def _show_sweep(said: dict[str, Any], place: Path, as_json: bool) -> None:
    """A sweep's page beside its runs, its table on the screen."""
    from distill.report.sweep_page import write
    from distill.terminal.sweep_table import sweep_table

    write(said, place / "sweep.html")
    if as_json:
        echo_json(said)
    else:
        screen = stdout()
        screen.print(sweep_table(said, screen.width), highlight=False)
        echo(f"{place / 'best.toml'}, {place / 'sweep.json'}, {place / 'sweep.html'}")
