"""Understudy: a large teacher, trained from scratch, teaches a ResNet under 5,000,000 parameters.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 the run failed; 2 the request
was wrong; 130 interrupted; 143 terminated.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.errors import Failure, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from distill.engine.run import Request
    from distill.recipe import Resolved
    from distill.run_folder import Role, RunFolder
    from distill.show.record import TestCurve
    from distill.show.report import LayerRow
    from distill.study.storage import Storage
    from distill.study.sweep import Reader, Say, Train

HEARTBEAT_S = 20  # of a search's workers; who is silent for three of them is taken for dead

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__.split("\n\n")[0] if __doc__ else None,
)
data_app = typer.Typer(no_args_is_help=True, help="The images.")
app.add_typer(data_app, name="data")
cache_app = typer.Typer(no_args_is_help=True, help="The teachers' answers that are stored.")
app.add_typer(cache_app, name="cache")

RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="A name, a path ending in .toml, or a+b+c.")
]
SetOption = Annotated[
    list[str], typer.Option("--set", "-s", help="key=value, over everything else; repeatable.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="synthetic, cifar10, cifar100 or a path.",
        show_default="the recipe's",
    ),
]
TeacherOption = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        "-t",
        help="A teacher's run folder; repeatable: their mean.",
        show_default="the newest",
    ),
]
SameDataOption = Annotated[
    str | None, typer.Option("--data", "-d", help="The same, as other verbs have it.")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="The run folder itself.", show_default="runs/<recipe>-<time>"),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint of --out, if any.")
]
TrackerOption = Annotated[
    list[str],
    typer.Option(
        "--tracker",
        help="tensorboard, wandb …: metrics go there too; repeatable.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeysArgument = Annotated[
    list[str], typer.Argument(metavar="KEY…", help="Beginnings of keys, as `cache info` says them.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="UNDERSTUDY_STORAGE",
        help="A database for many machines: postgresql://USER:PASSWORD@HOST/NAME.",
        show_default="SQLite in --out",
        show_envvar=True,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
def train_teacher(
    recipe: RecipeOption = "teacher_wrn",
    data: DataOption = None,
    set_: SetOption = [],
    out: OutOption = None,
    resume: ResumeOption = False,
    tracker: TrackerOption = [],
) -> None:
    """Train a teacher from scratch."""
    from distill import recipe as recipes

    resolved = _resolve(recipe, data, set_)
    recipes.check_teacher(resolved)
    _train("teacher", resolved, out, resume, tracker)


@app.command()
def distill(
    recipe: RecipeOption = "kd_cutmix",
    teacher: TeacherOption = [],
    data: DataOption = None,
    set_: SetOption = [],
    out: OutOption = None,
    resume: ResumeOption = False,
    tracker: TrackerOption = [],
) -> None:
    """Train a student, with a teacher where the recipe wants one."""
    from distill import recipe as recipes

    resolved = _resolve(recipe, data, set_, teacher)
    recipes.check_student(resolved)
    _train("student", resolved, out, resume, tracker)


@app.command()
def evaluate(
    run: RunArgument,
    data: DataOption = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="RUN", help="Which of the two is better, by McNemar."),
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Also the mean over each image and its mirror.")
    ] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also on 14 corruptions of the images; minutes.")
    ] = False,
    robustness_images: Annotated[
        int | None,
        typer.Option(
            "--robustness-images", min=1, help="So many of them, at random.", show_default="all"
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Also milliseconds for 1 and for 128 images.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a finished run on the test split: accuracy, likelihood, calibration, each class."""
    from distill import run_folder

    folder = run_folder.finished(run)  # refused before torch is imported
    if against is not None:
        run_folder.finished(against)
    if robustness_images is not None and not robustness:
        raise UserError(
            f"--robustness-images {robustness_images} says on how many images --robustness is "
            "measured, and that was not asked for; type --robustness with it."
        )
    from distill.engine.examine import Asked, examine
    from distill.engine.run import processes
    from distill.show.display import Display
    from distill.show.evaluation import evaluation

    asked = Asked(data, against, mirror, latency, robustness, robustness_images)
    with processes(), Display(_stderr()) as display:
        measured = examine(folder, asked, progress=display.progress)
    if as_json:
        _print(measured, as_json)
    else:
        _stdout().print(evaluation(measured))


@app.command()
def predict(
    run: RunArgument,
    source: Annotated[
        Path,
        typer.Option(
            "--input", "-i", help="Kaggle's pickle, .npy, .npz, a folder of pictures or one."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The CSV; one that is there is replaced.")
    ] = Path("predictions.csv"),
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="A column for each class in place of Labels.")
    ] = False,
) -> None:
    """Write what a finished run says of images without labels: the CSV that Kaggle takes."""
    from distill import run_folder

    folder = run_folder.finished(run)  # refused before torch is imported
    from distill.engine.run import processes
    from distill.ship import predict as room
    from distill.show.display import Display
    from distill.show.tables import class_counts

    room.check_out(out, source)
    with processes(), Display(_stderr()) as display:
        predictions = room.predict(folder, source, progress=display.progress)
    for note in predictions.notes:
        typer.echo(f"note: {note}", err=True)
    if _is_main():
        room.write(predictions, out, probabilities=probabilities)
    _stdout().print(class_counts(predictions.counts()), highlight=False)
    typer.echo(f"{out}: {len(predictions.ids):,} images")


@app.command()
def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="Of runs, or of groups of them.", show_default="runs"
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="By which column: age, run, recipe, test …")
    ] = "age",
    as_json: JsonOption = False,
) -> None:
    """List the runs of a folder: how good each is, and where it stands."""
    from dataclasses import asdict

    from distill import run_folder
    from distill.show.runs import listed
    from distill.show.runs_table import ordered, runs_table

    folder = folder or run_folder.RUNS
    found = ordered(listed(folder), sort)
    if as_json:
        _echo_json([asdict(run) for run in found])
    elif found:
        console = _stdout()
        console.print(runs_table(found, folder, console.width), highlight=False)
    else:
        typer.echo(f"no runs in {folder}; python cli.py train-teacher begins one")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A finished run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """Hold two finished runs against each other on the same test images."""
    from dataclasses import asdict

    from distill.show.compare import compare as hold
    from distill.show.compare_table import comparison

    compared = hold(a, b)
    if as_json:
        _echo_json(asdict(compared))
    else:
        _stdout().print(comparison(compared), highlight=False)


@app.command()
def export(
    run: RunArgument,
    format_: Annotated[
        list[str],
        typer.Option(
            "--format",
            "-f",
            help="project1, safetensors, onnx, torch-export, onnx-int8; repeatable.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    data: DataOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of an earlier export.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a finished run's network for use elsewhere, and hold what was written against it."""
    from distill import run_folder

    folder = run_folder.finished(run)
    from distill.ship import export as room
    from distill.show.display import Display

    with Display(_stderr()) as display:
        report = room.export(folder, format_, out, data, replace=replace, progress=display.progress)
    _print(report if as_json else room.told(report), as_json)


@app.command()
def replay(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", help="Which, from 1, as the journal counts.")],
    as_json: JsonOption = False,
) -> None:
    """Take one step of a run again and print its terms: the one that diverged, for instance."""
    from distill import run_folder

    folder = run_folder.opened(run)
    from distill.engine.replay import replay as take
    from distill.engine.run import processes
    from distill.show.display import Display

    with processes(), Display(_stderr()) as display:
        taken = take(folder, step, progress=display.progress)
    _print(taken, as_json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="An .html file or a folder for it.", show_default="RUN/report.html"
        ),
    ] = None,
    test_curve: Annotated[
        bool,
        typer.Option("--test-curve", help="Measure the kept epochs on train and test split, too."),
    ] = False,
) -> None:
    """Write a report, one HTML file: a run's curves, results and mistakes, or several compared."""
    from distill import run_folder

    folders = [run_folder.opened(run) for run in dict.fromkeys(runs)]
    from distill.show import comparison
    from distill.show import report as room

    path = room.place(folders, out)
    drawn = _test_curves(folders) if test_curve else {}
    if len(folders) == 1:
        beside = room.write(folders[0], path, _layers(folders[0]), drawn.get(folders[0].path))
    else:
        beside = comparison.write(folders, path, drawn)
    typer.echo(path)
    typer.echo(f"Its figures and tables, for a paper: {beside}", err=True)


@app.command()
def params(
    recipe: RecipeOption = "kd_cutmix", set_: SetOption = [], as_json: JsonOption = False
) -> None:
    """Count a recipe's student: parameters, multiply-accumulates, the budget."""
    from distill import recipe as recipes

    _print(recipes.count(recipe, set_), as_json)


@app.command()
def design(
    max_params: Annotated[
        int, typer.Option("--max-params", min=1, help="The budget; fewer than that many.")
    ] = 5_000_000,
    stages: Annotated[str, typer.Option("--stages", metavar="A-B", help="From A to B.")] = "2-5",
    blocks: Annotated[str, typer.Option("--blocks", metavar="A-B", help="In a stage.")] = "1-7",
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Every choice of blocks, stage by stage.")
    ] = False,
    kernel: Annotated[int, typer.Option("--kernel", help="Odd.")] = 3,
    skip_kernel: Annotated[int, typer.Option("--skip-kernel", help="Odd.")] = 1,
    pool: Annotated[
        str, typer.Option("--pool", help="global, or the side of the average pool.")
    ] = "global",
    rules: Annotated[
        str | None, typer.Option("--rules", help="A course's: nyu2022 or nyu2025.", show_default="")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="RECIPE", help="Say which clause its student breaks."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Parameters and MACs, drawn.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the widest network of each depth within a budget, or check one against a course's rules.

    Every row is the optimum: one channel more is over the budget.
    """
    from students import rules as courses
    from students.grid import widest_of_each

    course = courses.of(rules or "nyu2022")
    if check is not None:
        _check_rules(check, rules, max_params)
        return
    rows = widest_of_each(
        course.least_too_many(max_params),
        _numbers("--stages", stages),
        _numbers("--blocks", blocks),
        asymmetric=asymmetric,
        kernel=kernel,
        skip_kernel=skip_kernel,
        pool=int(pool) if pool.isdecimal() else pool,  # what else it is, is said by the design
    )
    if not rows:
        raise UserError(
            f"no network of {stages} stages and {blocks} blocks has "
            f"{'at most' if course.may_equal else 'fewer than'} {max_params:,} parameters.\n"
            "Give a larger --max-params, or fewer --stages and --blocks."
        )
    if plot is not None:
        from distill.show.design_plot import draw

        draw(rows, plot)
        typer.echo(f"{plot}: {len(rows)} designs", err=True)
    if as_json:
        _echo_json(rows)
    else:
        from distill.show.tables import design_table

        _stdout().print(design_table(rows))
        typer.echo(
            "To train one: --set student.stages=… --set student.blocks=… --set student.width=…",
            err=True,
        )


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|A+B|FILE", help="A recipe to print, resolved, with each value's origin."
        ),
    ] = None,
    set_: SetOption = [],
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="NAME|FILE", help="Say all its faults, or none."),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--diff", metavar="A B", help="What differs, and who set it.", show_default=""
        ),
    ] = None,
) -> None:
    """List the recipes, print one as it will be run, check one, or compare two."""
    from distill import recipe as room
    from distill.show.tables import recipe_origins, recipe_table

    if sum(asked is not None for asked in (name, check, diff)) > 1:
        raise UserError(
            "a recipe to print, --check and --diff exclude each other; give one of them"
        )
    if check is not None:
        typer.echo(room.verified(check, set_))
    elif diff is not None:
        a, b = (room.load(each, set_) for each in diff)
        typer.echo("\n".join(room.compared(a, b)) or f"{a.name} and {b.name} are the same")
    elif name is None:
        _stdout().print(recipe_table(room.shipped()))
    else:
        _stdout().print(recipe_origins(room.load(name, set_)), highlight=False, soft_wrap=True)


@data_app.command()
def info(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="synthetic, cifar10, cifar100 or a path.")
    ] = "cifar10",
    data: SameDataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a set holds, and whether it is the genuine CIFAR-10, in any container or order."""
    from distill.data import sources
    from distill.show.display import Display

    with Display(_stderr()) as display:
        facts = sources.info(data or source, progress=display.progress)
    _print(facts, as_json)
    if facts["faults"]:
        raise UserError("\n".join(facts["faults"]))


@data_app.command()
def fetch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="cifar10 or cifar100.")
    ] = "cifar10",
    into: Annotated[Path, typer.Option("--into", help="Where to.")] = Path("data"),
    mirror: Annotated[
        list[str],
        typer.Option(
            "--mirror",
            help="The address of the file itself, asked first; repeatable. More, with spaces "
            "between them, in $UNDERSTUDY_MIRRORS.",
            show_default="",
        ),
    ] = [],
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, help="After which it ends, to be gone on with.")
    ] = 120.0,
) -> None:
    """Download the official archive, resumed and checked; or check the one that is there."""
    from distill.data import fetch as room
    from distill.show.download import DownloadDisplay

    with DownloadDisplay(_stderr()) as progress:
        path = room.fetch(source, into, mirrors=mirror, progress=progress, total_s=60 * minutes)
    typer.echo(f"{path}: the official archive, md5 {room.ARCHIVES[source].md5}")


@data_app.command()
def verify(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="cifar10 or a path.")] = "cifar10",
    data: SameDataOption = None,
) -> None:
    """Read every image; exit 1 where they are not the published CIFAR-10, all of it."""
    from distill.data import sources
    from distill.show.display import Display

    source = data or source
    with Display(_stderr()) as display:
        facts = sources.info(source, progress=display.progress)
    if facts["faults"]:
        raise Failure("\n".join(facts["faults"]))
    if not facts["is_genuine"]:
        raise Failure(
            f"{source} can be read, {facts['train_images']:,} and {facts['test_images']:,} images, "
            f"and is not the published CIFAR-10 (genuine: {facts['genuine']})."
        )
    typer.echo(f"{source}: {facts['genuine']}, every image")


@app.command()
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
    from distill import run_folder
    from distill.show.seeds_table import seeds_table
    from distill.study import seeds as study

    resolved = _resolve(recipe, data, set_, teacher)
    if fixed := [key for key in ("train.seed", "data.seed") if resolved.origins[key] == "--set"]:
        raise UserError(
            f"seeds varies {' and '.join(fixed)} itself, from 0 on.\n"
            "Leave that --set away; --n says how many."
        )
    place = out or run_folder.RUNS / f"seeds-{resolved.name}"
    planned = study.plan(resolved, range(n), place, controls=control)
    study.check(planned)
    from distill.engine.run import processes

    with processes():
        for each in planned:
            taught = study.taught_alike(each, planned[0])
            _finish(each.role, taught, each.folder, resume=each.folder.is_run, trackers=[])
    said = study.summary(planned)
    if as_json:
        _echo_json(said)
    else:
        _stdout().print(seeds_table(said))


@app.command()
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
    from distill import run_folder
    from distill.study import sweep_file

    planned = sweep_file.load(file, _settings(data, set_, teacher), trials)
    place = out or run_folder.RUNS / f"sweep-{planned.name}"
    heartbeat_s = planned.file.study.heartbeat_s
    with _worker(place, storage, heartbeat_s) as (opened, train, say):
        from distill.study.sweep_summary import carried_out

        said = carried_out(planned, opened, place, train, say)
    _show_sweep(said, place, as_json)


@app.command()
def search(
    recipe: RecipeOption = "kd_cutmix",
    max_params: Annotated[
        int, typer.Option("--max-params", min=1, help="The budget; fewer than that many.")
    ] = 5_000_000,
    stages: Annotated[str, typer.Option("--stages", metavar="A-B", help="From A to B.")] = "2-5",
    blocks: Annotated[str, typer.Option("--blocks", metavar="A-B", help="In a stage.")] = "1-7",
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Every choice of blocks, stage by stage.")
    ] = False,
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
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where the runs lie.", show_default="runs/search-<recipe>"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find a student's design: every legal one for a short while, the best for longer, and longer.

    The same command on more machines, with one --storage, are more workers. Typed again it goes on.
    """
    from distill import recipe as recipes
    from distill import run_folder

    settings = _settings(data, set_, teacher)
    resolved = recipes.load(recipe, settings)
    place = out or run_folder.RUNS / f"search-{resolved.name}"
    depths = _numbers("--stages", stages), _numbers("--blocks", blocks)
    with _worker(place, storage, HEARTBEAT_S) as (opened, train, say):
        from distill.study import search as room

        designs, too_many = room.legal(
            resolved.recipe, rules, max_params, *depths, asymmetric=asymmetric
        )
        asked = room.Search(recipe, tuple(settings), tuple(designs), too_many, epochs, rungs, eta)
        said = room.search(asked, opened, place, train, say)
    _show_sweep(said, place, as_json)


@cache_app.command("info")
def cache_info(as_json: JsonOption = False) -> None:
    """List what is stored: whose answers, to how many views, how large."""
    from distill.engine import store
    from distill.show.tables import stock_table

    rows = store.listed()
    if as_json:
        _echo_json(rows)
    elif rows:
        _stdout().print(stock_table(rows))
    else:
        typer.echo(f"nothing is stored in {store.folder()}")


@cache_app.command("verify")
def cache_verify(keys: KeysArgument = []) -> None:
    """Read every stored file, and ask the teacher again for some answers where it still is."""
    from distill.engine import store

    chosen = store.named(keys) if keys else store.stocks()
    if not chosen:
        typer.echo(f"nothing is stored in {store.folder()}")
        return
    from distill.engine.recheck import verify

    verdicts = {stock.key: verify(stock) for stock in chosen}
    for key, verdict in verdicts.items():
        typer.echo(f"{key[:12]}  {verdict}")
    bad = [key[:12] for key, verdict in verdicts.items() if not verdict.is_sound]
    if bad:
        typer.echo(
            f"To have them asked again, type python cli.py cache drop {' '.join(bad)}", err=True
        )
        raise typer.Exit(1)


@cache_app.command("drop")
def cache_drop(
    keys: KeysArgument = [],
    every: Annotated[bool, typer.Option("--all", help="All that is stored.")] = False,
) -> None:
    """Delete stored answers; the next run that wants them asks its teacher."""
    from distill.engine import store

    if bool(keys) == every:
        asked = "KEY and --all exclude each other" if every else "nothing was named to be dropped"
        raise UserError(
            f"{asked}.\n"
            "Type python cli.py cache drop KEY…, as `cache info` lists them, or cache drop --all."
        )
    chosen = store.stocks() if every else store.named(keys)
    freed = sum(stock.n_bytes for stock in chosen)
    for stock in chosen:
        store.drop(stock)
    typer.echo(f"{len(chosen)} dropped, {store.size(freed)} freed")


def _test_curves(folders: Sequence["RunFolder"]) -> dict[Path, "TestCurve"]:
    """What the kept epochs of each run give on training and test images."""
    from distill.engine.kept import measured
    from distill.engine.run import processes
    from distill.show.display import Display

    with processes(), Display(_stderr()) as display:
        return {each.path: measured(each, progress=display.progress) for each in folders}


def _layers(folder: "RunFolder") -> Sequence["LayerRow"]:
    """The layers of a run's network; none where nothing says what it trained."""
    from distill.engine import layers
    from distill.show.record import read

    record = read(folder)
    if record.role is None or record.n_classes is None:
        return ()
    return layers.of_recipe(record.recipe, record.role, record.n_classes)


def _resolve(
    recipe: str, data: str | None, overrides: list[str], teachers: list[str] | None = None
) -> "Resolved":
    """The recipe as it will be run, the door's own options last."""
    from distill import recipe as recipes

    return recipes.load(recipe, _settings(data, overrides, teachers))


def _settings(data: str | None, overrides: list[str], teachers: list[str] | None) -> list[str]:
    """The door's own options as overrides, behind the others."""
    from distill.faults import shown

    chosen = [f"data.source={shown(data)}"] if data is not None else []
    if teachers:
        chosen.append(f"teacher.runs={shown(teachers)}")
    return [*overrides, *chosen]


def _check_rules(recipe: str, rules: str | None, budget: int) -> None:
    """Says whether a recipe's student keeps a course's rules; exit 1 where it does not."""
    from distill import recipe as recipes
    from students import rules as courses

    if rules is None:
        raise UserError(
            "--check asks whether a recipe's student keeps the rules of a course, and none was "
            f"named.\nType it with --rules {' or --rules '.join(courses.RULES)}."
        )
    course, (planned, activation) = courses.of(rules), recipes.planned(recipe)
    if faults := courses.broken(course, planned, activation, budget):
        raise Failure("\n  ".join([f"{recipe} breaks the rules of {course.title}:", *faults]))
    typer.echo(f"{recipe} keeps the rules of {course.title}: {planned.parameters:,} parameters")


def _numbers(option: str, text: str) -> range:
    """`2-5` or `3` as the numbers that it means. Raises UserError for anything else."""
    first, _, last = text.partition("-")
    if not (
        first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first)
    ):
        raise UserError(f"{option} {text} is not a range of numbers from 1 on; allowed: 3 or 2-5.")
    return range(int(first), int(last or first) + 1)


def _train(
    role: "Role", resolved: "Resolved", out: Path | None, resume: bool, trackers: list[str]
) -> None:
    """Run to the end; rank 0 shows and keeps every event."""
    from distill import run_folder

    if resume and out is None:
        raise UserError(
            "--resume goes on with a run, and none was named.\n"
            f"Type it with --out RUN{run_folder.unfinished_in(run_folder.RUNS)}."
        )
    if trackers:  # refused before any work
        from distill.show.trackers import check

        check(trackers)
    folder = run_folder.RunFolder(out or run_folder.default_path(resolved.name))
    _finish(role, resolved, folder, resume, trackers)
    if _is_main():
        _close(folder)


def _finish(
    role: "Role", resolved: "Resolved", folder: "RunFolder", resume: bool, trackers: list[str]
) -> None:
    """Train what is left of a run, which may be nothing."""
    from distill import run_folder

    if resume and folder.is_finished:
        run_folder.check_same(folder, resolved.recipe)
        typer.echo(f"{folder.path} is finished: nothing to do.", err=True)
    else:
        run_folder.check_out(folder, resume)
        _watch(role, resolved, folder, resume, trackers)


@contextmanager
def _worker(
    place: Path, url: str | None, heartbeat_s: int
) -> Iterator[tuple["Storage", "Train", "Say"]]:
    """What a worker of a sweep needs: the storage, how a run is trained, where to say what.

    What ends the worker early is one message and an exit code.
    """
    from distill import run_folder
    from distill.engine.stop import Stop

    if "WORLD_SIZE" in os.environ:
        raise UserError("a sweep's worker is one process; start several, each by the same command.")
    run_folder.check_writable(place, "the place of a sweep")
    stop = Stop()
    with stop.listening(), _said_when_left(place):
        from distill.engine.run import Request, processes

        try:
            from distill.study.storage import Storage, url_of
        except ModuleNotFoundError as fault:
            raise UserError(
                f"a sweep needs the package {fault.name}, which is not installed.\n"
                "Type uv pip install -r pyproject.toml --extra sweep, or "
                "pip install optuna 'psycopg[binary]'."
            ) from fault

        def train(resolved: "Resolved", folder: "RunFolder", read: "Reader") -> None:
            role: Role = "student" if resolved.recipe.student else "teacher"
            request = Request(
                role, resolved.recipe, resolved.name, folder.path, True, stop, resolved.origins
            )
            _show(request, folder, [], read)

        with processes():
            opened = Storage(url_of(url, place), heartbeat_s)
            yield opened, train, partial(typer.echo, err=True)


@contextmanager
def _said_when_left(place: Path) -> Iterator[None]:
    """A worker that is asked to stop says what becomes of its trial."""
    from distill.engine.stop import Stopped

    left = f"Stopped; its trial is left to the others. Type the same again to go on in {place}."
    try:
        yield
    except Stopped as fault:
        typer.echo(left, err=True)
        raise typer.Exit(fault.code) from None
    except SystemExit:
        typer.echo(left, err=True)
        raise
    except OSError as fault:
        where = f" ({fault.filename})" if fault.filename else ""
        raise Failure(
            f"The sweep in {place} failed: {fault.strerror or fault}{where}.\n"
            "Its trial is left to the others. Type the same again to go on."
        ) from fault


def _show_sweep(said: dict[str, Any], place: Path, as_json: bool) -> None:
    """A sweep's page beside its runs, its table on the screen."""
    from distill.show.sweep_page import write
    from distill.show.sweep_table import sweep_table

    write(said, place / "sweep.html")
    if as_json:
        typer.echo(json.dumps(said))
    else:
        _stdout().print(sweep_table(said), highlight=False)
        typer.echo(f"{place / 'best.toml'}, {place / 'sweep.json'}, {place / 'sweep.html'}")


def _close(folder: "RunFolder") -> None:
    """The finished run beside its teacher and the student alone."""
    from distill.show.closing import closing_rows
    from distill.show.display import closing_table

    _stdout().print(closing_table(closing_rows(folder)))


def _watch(
    role: "Role", resolved: "Resolved", folder: "RunFolder", resume: bool, trackers: list[str]
) -> None:
    """Every event to display, journal and trackers; what ends a run early, in words."""
    from distill.engine.stop import Stop

    stop = Stop()
    with stop.listening(), _said_why(folder):  # from before the seconds that imports take
        from distill.engine.run import Request

        request = Request(
            role, resolved.recipe, resolved.name, folder.path, resume, stop, resolved.origins
        )
        _show(request, folder, trackers)


def _show(
    request: "Request",
    folder: "RunFolder",
    trackers: list[str],
    read: "Reader" = lambda event: None,
) -> None:
    """Every event to display, journal, trackers and one reader more, who may leave the run."""
    from distill.engine.run import processes, run
    from distill.show.display import Display
    from distill.show.journal import Journal
    from distill.show.trackers import Trackers

    journal = Journal(folder.journal)
    tracked = Trackers(trackers, folder, partial(typer.echo, err=True))
    with (
        processes(),
        Display(_stderr()) as display,
        tracked,
        closing(run(request, progress=display.progress)) as events,
    ):
        for event in events:
            if _is_main():
                journal(event)
                tracked(event)
            display(event)
            read(event)


@contextmanager
def _said_why(folder: "RunFolder") -> Iterator[None]:
    """Whatever ends a run early is one message, with what to type next, and an exit code."""
    place = shlex.quote(str(folder.path))
    go_on = f"To go on, type the same command with --out {place} --resume"
    try:
        yield
    except (UserError, typer.Exit):
        raise
    except Failure as fault:
        raise Failure(f"{fault}\n{_kept(folder)}{go_on}") from fault
    except OSError as fault:
        where = f" ({fault.filename})" if fault.filename else ""
        raise Failure(
            f"The run in {folder.path} failed: {fault.strerror or fault}{where}.\n"
            f"{_kept(folder)}{go_on}"
        ) from fault
    except SystemExit:
        typer.echo(f"Stopped. {go_on}", err=True)
        raise
    except Exception as fault:
        _ended_early(folder, fault, go_on)
        raise


def _ended_early(folder: "RunFolder", fault: Exception, go_on: str) -> None:
    """Raises what the door shows for the engine's own reasons; returns for any other."""
    from distill.engine.consensus import is_loss_of_another
    from distill.engine.divergence import Diverged
    from distill.engine.stop import Stopped

    if isinstance(fault, Stopped):
        typer.echo(f"{str(fault).capitalize()}. {go_on}", err=True)
        raise typer.Exit(fault.code) from None
    if isinstance(fault, Diverged):
        raise Failure(
            f"The run in {folder.path} failed: {fault}.\n"
            f"See that step again: python cli.py replay {shlex.quote(str(folder.path))} --step "
            f"{fault.step}\n"
            "Then begin anew in another --out with a lower optim.lr or with a bound on the "
            "gradient, --set optim.clip=1; or go on from the last checkpoint at a lower rate, "
            "--resume --set train.retries=3."
        ) from None
    if isinstance(fault, RuntimeError) and is_loss_of_another(fault):
        print(  # by whoever is left: the one that speaks for all may be the one that is gone
            f"The run in {folder.path} failed: another of its processes ended or hangs.\n"
            f"{_kept(folder)}{go_on}",
            file=sys.__stderr__,
        )
        raise typer.Exit(1) from fault


def _kept(folder: "RunFolder") -> str:
    """What is left of a run that failed, where something is."""
    return "Its last checkpoint is whole. " if folder.last.exists() else ""


def _is_main() -> bool:
    """Whether this is the process that speaks and keeps, before accelerate knows."""
    return os.environ.get("RANK", "0") == "0"


def _stderr() -> "Console":
    """Where a person looks."""
    from rich.console import Console

    return Console(stderr=True)


def _stdout() -> "Console":
    from rich.console import Console

    return Console()


def _print(values: dict[str, Any], as_json: bool) -> None:
    """Names and values, one a line, or the same as JSON."""
    from distill.show.tables import fact_lines

    if as_json:
        _echo_json(values)
    else:
        _stdout().print(fact_lines(values), soft_wrap=True)


def _echo_json(values: Any) -> None:
    """Plain JSON on one line; a number that is none is `null`."""
    from distill.show.journal import without_nan

    typer.echo(json.dumps(without_nan(values), allow_nan=False))


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of several processes the first speaks. A traceback is printed later, by whom it befell."""
    if _is_main():
        yield
    else:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield


def main() -> None:
    """The door: a wrong request is one message and exit 2, a failure one and exit 1."""
    with _one_voice():
        try:
            app()
        except (UserError, Failure) as fault:
            typer.echo(str(fault), err=True)
            sys.exit(2 if isinstance(fault, UserError) else 1)


if __name__ == "__main__":
    main()
