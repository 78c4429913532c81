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

VIEWS = (2, 6)  # of each image, over which test-time augmentation can average

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
    """Train a student, with a teacher if the recipe needs one."""
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
        typer.Option("--against", metavar="RUN", help="Compare with this run (McNemar's test)."),
    ] = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Also average over each image and its mirror image.")
    ] = False,
    views: Annotated[
        int | None,
        typer.Option(
            "--views",
            metavar="2|6",
            help="Also average over 2 or 6 views of each image; 2 is --mirror, 6 adds shifts.",
        ),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option("--robustness", help="Also evaluate on 14 image corruptions; takes minutes."),
    ] = False,
    robustness_images: Annotated[
        int | None,
        typer.Option(
            "--robustness-images",
            min=1,
            help="Number of random test images for --robustness.",
            show_default="all",
        ),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option("--latency", help="Also measure the latency of 1 and of 128 images, in ms."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a finished run on the test split: accuracy, NLL, calibration, per-class accuracy."""
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
            f"--robustness-images {robustness_images} is the number of images for --robustness, "
            "which was not requested; type --robustness with it."
        )
    from distill.evaluation.evaluate import EvalOptions, evaluate_run
    from distill.terminal.evaluation_tables import evaluation_tables
    from distill.terminal.progress import ProgressDisplay
    from distill.training.run import process_group

    mirror = mirror or views == 2
    options = EvalOptions(data, against, mirror, latency, robustness, robustness_images, views == 6)
    with process_group(), ProgressDisplay(stderr()) as display:
        measured = evaluate_run(folder, options, progress=display.progress)
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
            "--input",
            "-i",
            help="Images: Kaggle's pickle, .npy, .npz, a picture or a folder of pictures.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The CSV file; an existing one is replaced.")
    ] = Path("predictions.csv"),
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="Write the probability of each class instead of Labels."
        ),
    ] = False,
    labels: Annotated[
        LabelStyle,
        typer.Option("--labels", help="Write labels as positions in the class names, or as names."),
    ] = LabelStyle.POSITIONS,
) -> None:
    """Predict the classes of unlabelled images and write them as a CSV file for Kaggle."""
    from distill.runs import run_folder

    folder = run_folder.open_finished(run)  # refused before torch is imported
    from distill.export import label_images
    from distill.terminal.progress import ProgressDisplay
    from distill.terminal.tables import class_counts
    from distill.training.run import process_group

    label_images.check_out(out, source)
    with process_group(), ProgressDisplay(stderr()) as display:
        predictions = label_images.predict(folder, source, progress=display.progress)
    is_named = labels is LabelStyle.NAMES
    by_number = None if is_named else label_images.numbers_out_of_order(predictions.class_names)
    for note in filter(None, [*predictions.notes, by_number]):
        echo(f"note: {note}", err=True)
    if is_main():
        label_images.write(predictions, out, probabilities=probabilities, names=is_named)
    stdout().print(class_counts(predictions.counts()), highlight=False)
    echo(f"{out}: {counted(len(predictions.ids), 'image')}")


@app.command()
def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="A folder of runs or of groups of runs.", show_default="runs"
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="Sort by this column: age, run, recipe, test …")
    ] = "age",
    as_json: JsonOption = False,
) -> None:
    """List the runs in a folder with their state and accuracy."""
    from dataclasses import asdict

    from distill.runs import run_folder
    from distill.runs.listing import list_runs
    from distill.terminal.runs_table import runs_table, sort_runs

    folder = folder or run_folder.RUNS
    listings = sort_runs(list_runs(folder), sort)
    if as_json:
        echo_json([asdict(run) for run in listings])
    elif listings:
        console = stdout()
        console.print(runs_table(listings, folder, console.width), highlight=False)
    else:
        echo(f"no runs in {folder}; python cli.py train-teacher starts one")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A finished run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another finished run.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two finished runs on the same test images."""
    from dataclasses import asdict

    from distill.runs.compare import compare as compare_runs
    from distill.terminal.compare_table import comparison_tables

    comparison = compare_runs(a, b)
    if as_json:
        echo_json(asdict(comparison))
    else:
        stdout().print(comparison_tables(comparison), highlight=False)


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
    out: Annotated[Path, typer.Option("--out", help="A new folder for the files.")],
    data: DataOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an earlier export in --out.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a finished run's network, read the files back and compare their outputs with it."""
    from distill.runs import run_folder

    if not is_main():  # only the first process writes
        return
    folder = run_folder.open_finished(run)
    from distill.export.export import export as export_run
    from distill.export.export import failure_message, report_lines
    from distill.terminal.progress import ProgressDisplay

    with ProgressDisplay(stderr()) as display:
        report = export_run(folder, format_, out, data, replace=replace, progress=display.progress)
    print_facts(report if as_json else report_lines(report), as_json)
    if message := failure_message(report):
        raise Failure(message)


@app.command()
def replay(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", help="The step's number in the journal, from 1.")],
    as_json: JsonOption = False,
) -> None:
    """Repeat one step of a run, such as one that diverged, and print its loss terms."""
    from distill.runs import run_folder

    folder = run_folder.open_run(run)
    from distill.terminal.progress import ProgressDisplay
    from distill.training.replay import replay as replay_step
    from distill.training.run import process_group

    with process_group(), ProgressDisplay(stderr()) as display:
        facts = replay_step(folder, step, progress=display.progress)
    print_facts(facts, as_json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="An .html file, or a folder for it.", show_default="RUN/report.html"
        ),
    ] = None,
    test_curve: Annotated[
        bool,
        typer.Option(
            "--test-curve", help="Also measure the saved epochs on training and test images."
        ),
    ] = False,
) -> None:
    """Write an HTML report: curves, results and mistakes of one run, or a comparison of several."""
    from distill.runs import run_folder

    folders = [run_folder.open_run(run) for run in dict.fromkeys(runs)]
    from distill.report import comparison, run_report

    path = run_report.report_path(folders, out)
    curves = _test_curves(folders) if test_curve else {}
    if len(folders) == 1:
        files = run_report.write(folders[0], path, _layers(folders[0]), curves.get(folders[0].path))
    else:
        files = comparison.write(folders, path, curves)
    echo(path)
    echo(f"Figures and tables for a paper: {files}", err=True)


@app.command()
def params(
    recipe: RecipeOption = "kd_cutmix", set_: SetOption = [], as_json: JsonOption = False
) -> None:
    """Count a recipe's parameters and MACs: the student's, and those of a wrn or resnet teacher."""
    from distill.recipe import recipes

    print_facts(recipes.count_networks(recipe, set_), as_json)


@app.command()
def plan(
    minutes: Annotated[
        float,
        typer.Option("--minutes", min=0.1, help="Time budget, including the teacher's training."),
    ] = 120.0,
    rules: Annotated[
        str | None,
        typer.Option("--rules", help="Rules of a course: nyu2022 or nyu2025.", show_default=False),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes that fit into a time budget on this machine, and the commands of the best.

    Measures the machine's speed for less than a minute and saves nothing.
    """
    began_at = time.monotonic()
    if "WORLD_SIZE" in os.environ:
        raise UserError("plan measures one process; type it without accelerate launch or torchrun.")
    from distill.sweep.plan import plan as make_plan

    plan_ = make_plan(minutes, rules, data, began_at)
    if as_json:
        echo_json(plan_)
    else:
        from rich.text import Text

        from distill.terminal.plan_table import plan_blocks

        for block in plan_blocks(plan_):
            stdout().print(block, highlight=False, soft_wrap=isinstance(block, Text))


@app.command()
def design(
    max_params: BudgetOption = 5_000_000,
    stages: StagesOption = "2-5",
    blocks: BlocksOption = "1-7",
    asymmetric: AsymmetricOption = False,
    kernel: Annotated[int, typer.Option("--kernel", help="Kernel size of the blocks; odd.")] = 3,
    skip_kernel: Annotated[
        int, typer.Option("--skip-kernel", help="Kernel size of the skips; odd.")
    ] = 1,
    pool: Annotated[
        str, typer.Option("--pool", help="Average pool: global, or its side in pixels.")
    ] = "global",
    downsample: Annotated[
        str,
        typer.Option("--downsample", help="stride, or pool: each stage begins with a max pool."),
    ] = "stride",
    rules: Annotated[
        str | None,
        typer.Option("--rules", help="Rules of a course: nyu2022 or nyu2025.", show_default=False),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check", metavar="RECIPE", help="List the clauses of --rules that its student breaks."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Plot parameters and MACs to this file."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the widest network of each depth within a budget, or check one against a course's rules.

    Each width is the largest: one more channel exceeds the budget.
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
        pool=int(pool) if pool.isdecimal() else pool,  # Design.of refuses any other text
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
            metavar="NAME|A+B|FILE", help="Print this recipe, resolved, with each value's origin."
        ),
    ] = None,
    set_: SetOption = [],
    check: Annotated[
        str | None,
        typer.Option(
            "--check", metavar="NAME|FILE", help="Check a recipe and print all its errors."
        ),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--diff",
            metavar="A B",
            help="Print the differences and the files that set them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the recipes, print one with its resolved values, check one, or compare two."""
    from distill.recipe import recipes
    from distill.terminal.tables import recipe_origins, recipe_table

    if sum(value is not None for value in (name, check, diff)) > 1:
        raise UserError(
            "a recipe to print, --check and --diff exclude each other; give one of them"
        )
    if check is not None:
        echo(recipes.check_report(check, set_))
    elif diff is not None:
        a, b = (recipes.load(spec, set_) for spec in diff)
        echo(
            "\n".join(recipes.differences_with_origins(a, b))
            or f"{a.name} and {b.name} are the same"
        )
    elif name is None:
        stdout().print(recipe_table(recipes.shipped()))
    else:
        resolved = recipes.load(name, set_)
        stdout().print(recipe_origins(resolved), highlight=False, soft_wrap=True)
        for note in (*resolved.replaced.values(), *resolved.idle):
            echo(f"note: {note}", err=True)


def _test_curves(folders: Sequence["RunFolder"]) -> dict[Path, "TestCurve"]:
    """Measure each run's saved epochs on training and test images; keys are run folders."""
    from distill.evaluation.test_curve import measure_epochs
    from distill.terminal.progress import ProgressDisplay
    from distill.training.run import process_group

    with process_group(), ProgressDisplay(stderr()) as display:
        return {run.path: measure_epochs(run, progress=display.progress) for run in folders}


def _layers(folder: "RunFolder") -> Sequence["LayerRow"]:
    """Return the layers of a run's network; empty if the run does not record what it trained."""
    from distill.components import layers
    from distill.runs.record import read

    record = read(folder)
    if record.role is None or record.n_classes is None:
        return ()
    return layers.layers_of_recipe(record.recipe, record.role, record.n_classes)


def _check_rules(recipe: str, rules: str | None, budget: int, as_json: bool) -> None:
    """Print whether a recipe's student follows a course's rules; exit 1 if it does not."""
    from distill.recipe import recipes
    from students import course_rules as courses

    if rules is None:
        raise UserError(
            "--check compares a recipe's student with the rules of a course, but none was named.\n"
            f"Type it with --rules {' or --rules '.join(courses.RULES)}."
        )
    course, (student, activation) = courses.rules_by_name(rules), recipes.design_of(recipe)
    faults = courses.broken_clauses(course, student, activation, budget)
    if as_json:
        keeps, parameters = not faults, student.parameters
        facts = {"recipe": recipe, "rules": rules, "keeps": keeps, "parameters": parameters}
        echo_json(facts | {"broken": faults})
        if faults:
            raise typer.Exit(1)
        return
    if faults:
        raise Failure("\n  ".join([f"{recipe} breaks the rules of {course.title}:", *faults]))
    echo(f"{recipe} follows the rules of {course.title}: {student.parameters:,} parameters")


for _command in (sweep_commands.seeds, sweep_commands.sweep, sweep_commands.search):
    app.command()(_command)


def main() -> None:
    """Run a command: a wrong request prints one message and exits 2, a failure exits 1."""
    escape_unencodable()
    with only_first_process_prints(), quiet_on_error("stderr"):
        try:
            app()
        except (UserError, Failure) as fault:
            echo(str(fault), err=True)
            sys.exit(2 if isinstance(fault, UserError) else 1)


if __name__ == "__main__":
    main()
