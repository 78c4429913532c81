"""The commands over many runs: `seeds`, `sweep` and `search`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from distill.cli.stdout_and_stderr import echo, echo_json, stdout, system_error_text
from distill.cli.train_commands import combined_overrides, finish, follow, resolve
from distill.errors import Failure, UserError
from distill.files.escape_text import is_file_name

if TYPE_CHECKING:
    from distill.recipe.recipes import ResolvedRecipe
    from distill.runs.run_folder import Role, RunFolder
    from distill.sweep.storage import Storage
    from distill.sweep.worker import PrintLine, Reader, Train

GO_ON = "Another worker can continue its trial. Type the same command again to continue."
HEARTBEAT_S = 20  # seconds between heartbeats of a search's worker; dead if it misses three


def seeds(
    recipe: RecipeOption = "kd_cutmix",
    n: Annotated[int, typer.Option("--n", help="Number of seeds, which are 0 to N - 1.")] = 5,
    teacher: TeacherOption = [],
    data: DataOption = None,
    set_: SetOption = [],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder of the runs.", show_default="runs/seeds-<recipe>"),
    ] = None,
    control: Annotated[
        bool, typer.Option(help="Also train the student alone with each seed, as a control.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe and its control with several seeds; show mean, spread and paired difference.

    Type the same command again to resume: finished runs are not repeated.
    """
    from distill.runs import run_folder
    from distill.sweep import train_over_seeds as seed_runs
    from distill.terminal.seeds_table import seeds_table

    resolved = resolve(recipe, data, set_, teacher)
    if fixed := [key for key in ("train.seed", "data.seed") if resolved.origins[key] == "--set"]:
        raise UserError(
            f"seeds sets {' and '.join(fixed)} itself, starting at 0.\n"
            "Remove that --set; --n is the number of seeds."
        )
    folder = out or run_folder.RUNS / f"seeds-{resolved.name}"
    planned = seed_runs.plan(resolved, range(n), folder, controls=control)
    seed_runs.check(planned)
    from distill.training.run import process_group

    with process_group():
        for run in planned:
            recipe_of_run = seed_runs.with_same_teacher(run, planned[0])
            resume, resume_hint = run.folder.is_run, "To continue, type the same command again"
            finish(run.role, recipe_of_run, run.folder, resume, [], resume_hint)
    summary = seed_runs.summary(planned)
    for note in summary.get("notes", []):
        typer.echo(f"note: {note}", err=True)
    if as_json:
        echo_json(summary)
    else:
        stdout().print(seeds_table(summary))


def sweep(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A sweep file: recipe, trials, space, constraint."),
    ],
    teacher: TeacherOption = [],
    data: DataOption = None,
    set_: SetOption = [],
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="Number of trials.", show_default="the file's"),
    ] = None,
    storage: StorageOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder of the runs.", show_default="runs/sweep-<file>"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tune keys of a recipe as a sweep file describes: TPE samples trials, bad ones stop early.

    Type the same command again to resume, or on more machines with one --storage to share the work.
    """
    from distill.runs import run_folder
    from distill.sweep import sweep_file

    planned = sweep_file.load(file, combined_overrides(data, set_, teacher), trials)
    folder = out or run_folder.RUNS / f"sweep-{planned.name}"
    heartbeat_s = planned.file.study.heartbeat_s
    base = planned.base.recipe
    with _worker_functions(folder, storage, heartbeat_s) as (open_storage, train, print_line):
        from distill.sweep.sweep_summary import run_sweep
        from distill.sweep.worker import input_variants
        from distill.teacher import selection

        inputs = selection.check_teachers(base, input_variants(planned))
        summary = run_sweep(planned, open_storage(), folder, train, print_line, inputs)
    _write_page_and_print(summary, folder, as_json)


def search(
    recipe: RecipeOption = "kd_cutmix",
    max_params: BudgetOption = 5_000_000,
    stages: StagesOption = "2-5",
    blocks: BlocksOption = "1-7",
    asymmetric: AsymmetricOption = False,
    rules: Annotated[
        str, typer.Option("--rules", help="Rules of a course: nyu2022 or nyu2025.")
    ] = "nyu2022",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of the last rung.")] = 27,
    rungs: Annotated[int, typer.Option("--rungs", min=1, help="Number of rungs.")] = 3,
    eta: Annotated[
        int,
        typer.Option(
            "--eta",
            min=2,
            help="Each rung passes the best 1/ETA of its designs to the next, which trains "
            "them ETA times longer.",
        ),
    ] = 3,
    teacher: TeacherOption = [],
    data: DataOption = None,
    set_: SetOption = [],
    storage: StorageOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the search in the storage.", show_default="search-<recipe>"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder of the runs.", show_default="runs/<name>"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search for a student design: train each allowed design briefly, the best ones for longer.

    Type the same command again to resume, or on more machines with one --storage to share the work.
    """
    from distill.recipe import recipes
    from distill.runs import run_folder

    _check_name(name)
    chosen = combined_overrides(data, set_, teacher)
    resolved = recipes.load(recipe, chosen)
    if resolved.recipe.train.epochs is None or resolved.origins["train.epochs"] == "--set":
        raise UserError(
            "search sets train.epochs itself and does not take train.minutes.\n"
            "Remove that --set; type --epochs N."
        )
    name = name or f"search-{resolved.name}"
    folder = out or run_folder.RUNS / name
    depths = numbers("--stages", stages), numbers("--blocks", blocks, 0 if asymmetric else 1)
    with _worker_functions(folder, storage, HEARTBEAT_S) as (open_storage, train, print_line):
        from distill.sweep import search_student_design
        from distill.teacher import selection

        designs, too_many = search_student_design.legal_designs(
            resolved.recipe, rules, max_params, *depths, asymmetric=asymmetric
        )
        planned = search_student_design.Search(
            recipe, tuple(chosen), tuple(designs), too_many, epochs, rungs, eta, name
        )
        inputs = selection.check_teachers(resolved.recipe)
        summary = search_student_design.search(
            planned, open_storage(), folder, train, print_line, inputs
        )
    _write_page_and_print(summary, folder, as_json)


def _check_name(name: str | None) -> None:
    """Raise UserError if the name of a search cannot be the name of a folder in runs/."""
    from distill.recipe.validation import shorten
    from distill.sweep.sweep_schema import FOLDER_NAME

    if name and not is_file_name(name):
        raise UserError(
            f"--name {shorten(repr(name))} is not {FOLDER_NAME}.\n"
            "Type --name NAME, and the folder as --out FOLDER."
        )


@contextmanager
def _worker_functions(
    sweep_folder: Path, url: str | None, heartbeat_s: int
) -> Iterator[tuple[Callable[[], "Storage"], "Train", "PrintLine"]]:
    """Yield functions that a sweep's worker calls: to open the storage, train a run, print a line.

    `url`: the option --storage; `heartbeat_s`: seconds between heartbeats. The storage is opened
    only when its function is called, because images and teachers are read first. An interruption
    or failure of the worker becomes one message and an exit code. Raises UserError if torchrun or
    accelerate launch started the process, if nothing can be written in `sweep_folder`, or if a
    package for sweeps is missing.
    """
    from distill.runs import run_folder
    from distill.training.signals import StopSignal

    if "WORLD_SIZE" in os.environ:
        raise UserError(
            "a sweep's worker is one process; type the same command once for each worker."
        )
    run_folder.check_writable(sweep_folder, "the folder of a sweep")
    stop = StopSignal()
    with stop.handle_signals(), _explain_abandoned_trial(sweep_folder):
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

            def open_storage() -> Storage:
                return Storage(url_of(url, sweep_folder), heartbeat_s)

            yield open_storage, train, partial(echo, err=True)


@contextmanager
def _explain_abandoned_trial(folder: Path) -> Iterator[None]:
    """If a sweep's worker is interrupted or fails, print what happens to its trial.

    `folder`: the sweep's folder.
    """
    from distill.models.out_of_memory import OutOfMemory
    from distill.training.signals import Stopped

    message = (
        "Stopped; another worker can continue its trial. "
        f"Type the same command again to continue in {folder}."
    )
    try:
        yield
    except Stopped as fault:
        echo(message, err=True)
        raise typer.Exit(fault.code) from None
    except SystemExit:
        echo(message, err=True)
        raise
    except OutOfMemory as fault:
        raise Failure(f"The sweep in {folder} stopped: {fault}\n{GO_ON}") from None
    except OSError as fault:
        raise Failure(
            f"The sweep in {folder} failed: {system_error_text(fault)}.\n{GO_ON}"
        ) from fault


def _write_page_and_print(summary: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Write a sweep's HTML page into its folder and print its table."""
    from distill.report.sweep_page import write
    from distill.terminal.sweep_table import sweep_table

    write(summary, folder / "sweep.html")
    if as_json:
        echo_json(summary)
    else:
        console = stdout()
        console.print(sweep_table(summary, console.width), highlight=False)
        echo(f"{folder / 'best.toml'}, {folder / 'sweep.json'}, {folder / 'sweep.html'}")
