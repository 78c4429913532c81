"""Understudy: train a large teacher from scratch and distil it into a ResNet under 5M parameters.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 the run failed; 2 the request
was wrong; 130 interrupted; 143 terminated.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli import cache_command, data_command, sweep_commands
from distill.cli.console import (
    echo,
    echo_json,
    escape_unencodable,
    is_main,
    only_first_process_prints,
    print_facts,
    quiet_on_error,
    stderr,
    stdout,
)
from distill.cli.options import (
    AsymmetricOption,
    BlocksOption,
    BudgetOption,
    DataOption,
    JsonOption,
    LabelStyle,
    OutOption,
    RecipeOption,
    ResumeOption,
    RunArgument,
    SetOption,
    StagesOption,
    TeacherOption,
    TrackerOption,
    numbers,
)
from distill.cli.train_commands import resolve, train
from distill.errors import Failure, UserError
from distill.format import counted

if TYPE_CHECKING:
    from distill.report.run_report import LayerRow
    from distill.runs.record import TestCurve
    from distill.runs.run_folder import RunFolder

VIEWS = (2, 6)  # of each image, that test-time augmentation may take the mean over

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__.split("\n\n")[0] if __doc__ else None,
)
app.add_typer(data_command.app, name="data")
app.add_typer(cache_command.app, name="cache")


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
    from distill.recipe import recipes

    resolved = resolve(recipe, data, set_)
    recipes.check_teacher(resolved)
    train("teacher", resolved, out, resume, tracker)


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
    from distill.recipe import recipes

    resolved = resolve(recipe, data, set_, teacher)
    recipes.check_student(resolved)
    train("student", resolved, out, resume, tracker)


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
    views: Annotated[
        int | None,
        typer.Option(
            "--views",
            metavar="2|6",
            help="Also the mean over so many views of each image; 2 is --mirror, 6 adds shifts.",
        ),
    ] = None,
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
    from distill.runs import run_folder

    folder = run_folder.open_finished(run)  # refused before torch is imported
    if against is not None:
        run_folder.open_finished(against)
    if views not in (None, *VIEWS):
        raise UserError(
            f"--views {views} is not supported; allowed: 2 (each image and its mirror image, as "
            "--mirror) or 6 (both, and each shifted by one pixel up-left and down-right).\n"
            "The figures of a single view are always shown."
        )
    if robustness_images is not None and not robustness:
        raise UserError(
            f"--robustness-images {robustness_images} says on how many images --robustness is "
            "measured, and that was not asked for; type --robustness with it."
        )
    from distill.evaluation.evaluate import EvalOptions, evaluate_run
    from distill.terminal.evaluation_tables import evaluation_tables
    from distill.terminal.progress import ProgressDisplay
    from distill.training.run import process_group

    mirror = mirror or views == 2
    asked = EvalOptions(data, against, mirror, latency, robustness, robustness_images, views == 6)
    with process_group(), ProgressDisplay(stderr()) as display:
        measured = evaluate_run(folder, asked, progress=display.progress)
    if as_json:
        print_facts(measured, as_json)
    else:
        stdout().print(evaluation_tables(measured))


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
    labels: Annotated[
        LabelStyle,
        typer.Option("--labels", help="Labels as positions in the class names, or the names."),
    ] = LabelStyle.POSITIONS,
) -> None:
    """Write what a finished run says of images without labels: the CSV that Kaggle takes."""
    from distill.runs import run_folder

    folder = run_folder.open_finished(run)  # refused before torch is imported
    from distill.export import label_images as room
    from distill.terminal.progress import ProgressDisplay
    from distill.terminal.tables import class_counts
    from distill.training.run import process_group

    room.check_out(out, source)
    with process_group(), ProgressDisplay(stderr()) as display:
        predictions = room.predict(folder, source, progress=display.progress)
    is_named = labels is LabelStyle.NAMES
    by_number = None if is_named else room.numbers_out_of_order(predictions.class_names)
    for note in filter(None, [*predictions.notes, by_number]):
        echo(f"note: {note}", err=True)
    if is_main():
        room.write(predictions, out, probabilities=probabilities, names=is_named)
    stdout().print(class_counts(predictions.counts()), highlight=False)
    echo(f"{out}: {counted(len(predictions.ids), 'image')}")


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

    from distill.runs import run_folder
    from distill.runs.listing import list_runs
    from distill.terminal.runs_table import runs_table, sort_runs

    folder = folder or run_folder.RUNS
    found = sort_runs(list_runs(folder), sort)
    if as_json:
        echo_json([asdict(run) for run in found])
    elif found:
        console = stdout()
        console.print(runs_table(found, folder, console.width), highlight=False)
    else:
        echo(f"no runs in {folder}; python cli.py train-teacher begins one")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A finished run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """Hold two finished runs against each other on the same test images."""
    from dataclasses import asdict

    from distill.runs.compare import compare as hold
    from distill.terminal.compare_table import comparison_tables

    compared = hold(a, b)
    if as_json:
        echo_json(asdict(compared))
    else:
        stdout().print(comparison_tables(compared), highlight=False)


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
    from distill.runs import run_folder

    if not is_main():  # of several processes one writes
        return
    folder = run_folder.open_finished(run)
    from distill.export import export as room
    from distill.terminal.progress import ProgressDisplay

    with ProgressDisplay(stderr()) as display:
        report = room.export(folder, format_, out, data, replace=replace, progress=display.progress)
    print_facts(report if as_json else room.report_lines(report), as_json)
    if failed := room.failure_message(report):
        raise Failure(failed)


@app.command()
def replay(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", help="Which, from 1, as the journal counts.")],
    as_json: JsonOption = False,
) -> None:
    """Take one step of a run again and print its terms: the one that diverged, for instance."""
    from distill.runs import run_folder

    folder = run_folder.open_run(run)
    from distill.terminal.progress import ProgressDisplay
    from distill.training.replay import replay as take
    from distill.training.run import process_group

    with process_group(), ProgressDisplay(stderr()) as display:
        taken = take(folder, step, progress=display.progress)
    print_facts(taken, as_json)


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
    from distill.runs import run_folder

    folders = [run_folder.open_run(run) for run in dict.fromkeys(runs)]
    from distill.report import comparison
    from distill.report import run_report as room

    path = room.report_path(folders, out)
    drawn = _test_curves(folders) if test_curve else {}
    if len(folders) == 1:
        beside = room.write(folders[0], path, _layers(folders[0]), drawn.get(folders[0].path))
    else:
        beside = comparison.write(folders, path, drawn)
    echo(path)
    echo(f"Its figures and tables, for a paper: {beside}", err=True)


@app.command()
def params(
    recipe: RecipeOption = "kd_cutmix", set_: SetOption = [], as_json: JsonOption = False
) -> None:
    """Count a recipe's student, and its teacher of network wrn or resnet: parameters, MACs."""
    from distill.recipe import recipes

    print_facts(recipes.count_networks(recipe, set_), as_json)


@app.command()
def plan(
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, help="Of training, the teacher's included.")
    ] = 120.0,
    rules: Annotated[
        str | None,
        typer.Option("--rules", help="A course's: nyu2022 or nyu2025.", show_default=False),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes that fit into some minutes on this machine, and what to type for the best.

    Measures the machine's speed for less than a minute; trains nothing that is kept.
    """
    began_at = time.monotonic()
    if "WORLD_SIZE" in os.environ:
        raise UserError("plan measures one process; type it without accelerate launch or torchrun.")
    from distill.sweep.plan import plan as planned

    found = planned(minutes, rules, data, began_at)
    if as_json:
        echo_json(found)
    else:
        from rich.text import Text

        from distill.terminal.plan_table import plan_blocks

        for block in plan_blocks(found):
            stdout().print(block, highlight=False, soft_wrap=isinstance(block, Text))


@app.command()
def design(
    max_params: BudgetOption = 5_000_000,
    stages: StagesOption = "2-5",
    blocks: BlocksOption = "1-7",
    asymmetric: AsymmetricOption = False,
    kernel: Annotated[int, typer.Option("--kernel", help="Odd.")] = 3,
    skip_kernel: Annotated[int, typer.Option("--skip-kernel", help="Odd.")] = 1,
    pool: Annotated[
        str, typer.Option("--pool", help="global, or the side of the average pool.")
    ] = "global",
    downsample: Annotated[
        str, typer.Option("--downsample", help="stride, or pool: a max pool begins each stage.")
    ] = "stride",
    rules: Annotated[
        str | None,
        typer.Option("--rules", help="A course's: nyu2022 or nyu2025.", show_default=False),
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
    from students import course_rules as courses
    from students.design_space import widest_of_each

    course = courses.rules_by_name(rules or "nyu2022")
    if rules is not None and max_params > courses.BUDGET:
        raise UserError(
            f"--max-params {max_params} is more than the rules of {course.title} allow: "
            f"{course.bound} {courses.BUDGET:,}."
        )
    if check is not None:
        if plot is not None:
            raise UserError("--check and --plot exclude each other; give one of them")
        _check_rules(check, rules, max_params, as_json)
        return
    rows = widest_of_each(
        course.least_too_many(max_params),
        numbers("--stages", stages),
        numbers("--blocks", blocks, 0 if asymmetric else 1),
        asymmetric=asymmetric,
        downsample=downsample,
        kernel=kernel,
        skip_kernel=skip_kernel,
        pool=int(pool) if pool.isdecimal() else pool,  # what else it is, is said by the design
    )
    if not rows:
        raise UserError(
            f"no network of {stages} stages and {blocks} blocks has "
            f"{course.bound} {max_params:,} parameters.\n"
            "Give a larger --max-params, or fewer --stages and --blocks."
        )
    if plot is not None:
        from distill.report.design_plot import draw

        draw(rows, plot)
        echo(f"{plot}: {counted(len(rows), 'design')}", err=True)
    if as_json:
        echo_json(rows)
    else:
        from distill.terminal.tables import design_table

        stdout().print(design_table(rows))
        pooled = " --set student.downsample=pool" if downsample == "pool" else ""
        echo(
            "To train one: --set student.stages=… --set student.blocks=… --set student.width=…"
            f"{pooled}",
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
            "--diff", metavar="A B", help="What differs, and who set it.", show_default=False
        ),
    ] = None,
) -> None:
    """List the recipes, print one as it will be run, check one, or compare two."""
    from distill.recipe import recipes as room
    from distill.terminal.tables import recipe_origins, recipe_table

    if sum(asked is not None for asked in (name, check, diff)) > 1:
        raise UserError(
            "a recipe to print, --check and --diff exclude each other; give one of them"
        )
    if check is not None:
        echo(room.check_report(check, set_))
    elif diff is not None:
        a, b = (room.load(each, set_) for each in diff)
        echo(
            "\n".join(room.differences_with_origins(a, b)) or f"{a.name} and {b.name} are the same"
        )
    elif name is None:
        stdout().print(recipe_table(room.shipped()))
    else:
        resolved = room.load(name, set_)
        stdout().print(recipe_origins(resolved), highlight=False, soft_wrap=True)
        for note in (*resolved.replaced.values(), *resolved.idle):
            echo(f"note: {note}", err=True)


def _test_curves(folders: Sequence["RunFolder"]) -> dict[Path, "TestCurve"]:
    """What the kept epochs of each run give on training and test images."""
    from distill.evaluation.epoch_weights import measure_epochs
    from distill.terminal.progress import ProgressDisplay
    from distill.training.run import process_group

    with process_group(), ProgressDisplay(stderr()) as display:
        return {each.path: measure_epochs(each, progress=display.progress) for each in folders}


def _layers(folder: "RunFolder") -> Sequence["LayerRow"]:
    """The layers of a run's network; none where nothing says what it trained."""
    from distill.models import layers
    from distill.runs.record import read

    record = read(folder)
    if record.role is None or record.n_classes is None:
        return ()
    return layers.layers_of_recipe(record.recipe, record.role, record.n_classes)


def _check_rules(recipe: str, rules: str | None, budget: int, as_json: bool) -> None:
    """Says whether a recipe's student keeps a course's rules; exit 1 where it does not."""
    from distill.recipe import recipes
    from students import course_rules as courses

    if rules is None:
        raise UserError(
            "--check asks whether a recipe's student keeps the rules of a course, and none was "
            f"named.\nType it with --rules {' or --rules '.join(courses.RULES)}."
        )
    course, (planned, activation) = courses.rules_by_name(rules), recipes.design_of(recipe)
    faults = courses.broken_clauses(course, planned, activation, budget)
    if as_json:
        keeps, parameters = not faults, planned.parameters
        said = {"recipe": recipe, "rules": rules, "keeps": keeps, "parameters": parameters}
        echo_json(said | {"broken": faults})
        if faults:
            raise typer.Exit(1)
        return
    if faults:
        raise Failure("\n  ".join([f"{recipe} breaks the rules of {course.title}:", *faults]))
    echo(f"{recipe} keeps the rules of {course.title}: {planned.parameters:,} parameters")


for _verb in (sweep_commands.seeds, sweep_commands.sweep, sweep_commands.search):
    app.command()(_verb)


def main() -> None:
    """The door: a wrong request is one message and exit 2, a failure one and exit 1."""
    escape_unencodable()
    with only_first_process_prints(), quiet_on_error("stderr"):
        try:
            app()
        except (UserError, Failure) as fault:
            echo(str(fault), err=True)
            sys.exit(2 if isinstance(fault, UserError) else 1)


if __name__ == "__main__":
    main()
