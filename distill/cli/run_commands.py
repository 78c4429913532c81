"""The commands on runs: evaluate, predict, runs, compare, export, replay and report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.cli.options import (
    DataOption,
    JsonOption,
    LabelStyle,
    RunArgument,
    normalisation_of,
)
from distill.cli.stdout_and_stderr import (
    echo,
    echo_json,
    is_main,
    loading_libraries,
    print_facts,
    stderr,
    stdout,
)
from distill.errors import Failure, UserError
from distill.format import counted

if TYPE_CHECKING:
    from distill.report.run_report import LayerRow
    from distill.runs.read_run_folder import TestCurve
    from distill.runs.run_folder import RunFolder

VIEWS = (2, 6)  # how many views of each image test-time augmentation can average


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

    folder = run_folder.open_finished(run)  # before torch is imported, which takes seconds
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
    with loading_libraries():
        from distill.evaluation.evaluate_run import EvalOptions, evaluate_run
        from distill.training.run import process_group
    from distill.terminal.evaluation_tables import evaluation_tables
    from distill.terminal.progress import ProgressDisplay

    mirror = mirror or views == 2
    options = EvalOptions(data, against, mirror, latency, robustness, robustness_images, views == 6)
    with process_group(), ProgressDisplay(stderr()) as display:
        measured = evaluate_run(folder, options, progress=display.progress)
    if as_json:
        print_facts(measured, as_json)
    else:
        stdout().print(evaluation_tables(measured))


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
            "--probabilities",
            help="Write the probability of each class instead of the column Labels.",
        ),
    ] = False,
    labels: Annotated[
        LabelStyle,
        typer.Option("--labels", help="Write labels as positions in the class names, or as names."),
    ] = LabelStyle.POSITIONS,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average over each image and its mirror image.")
    ] = False,
) -> None:
    """Predict the classes of unlabelled images and write them as a CSV file for Kaggle."""
    from distill.runs import run_folder

    folder = run_folder.open_finished(run)  # before torch is imported, which takes seconds
    if probabilities and labels is LabelStyle.NAMES:
        raise UserError(
            "--labels names is for the column Labels, which --probabilities replaces by a column "
            "for each class, headed by its name.\nLeave one of the two out."
        )
    with loading_libraries():
        from distill.export import predictions_csv
        from distill.training.run import process_group
    from distill.terminal.progress import ProgressDisplay
    from distill.terminal.recipe_and_cache_tables import class_counts

    predictions_csv.check_out(out, source)
    is_replaced = out.exists()
    with process_group(), ProgressDisplay(stderr()) as display:
        predictions = predictions_csv.predict(
            folder, source, mirror=mirror, progress=display.progress
        )
    is_named = labels is LabelStyle.NAMES
    by_number = None if is_named else predictions_csv.numeric_names_note(predictions.class_names)
    replaced = f"{out} existed and is replaced" if is_replaced else None
    for note in filter(None, [*predictions.notes, by_number, replaced]):
        echo(f"note: {note}", err=True)
    if is_main():
        predictions_csv.write(predictions, out, probabilities=probabilities, names=is_named)
    stdout().print(class_counts(predictions.counts()), highlight=False)
    echo(f"{out}: {counted(len(predictions.ids), 'image')}")


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
    from distill.runs.list_runs import list_runs
    from distill.terminal.runs_table import runs_table, sort_runs

    folder = folder or run_folder.RUNS
    listings = sort_runs(list_runs(folder), sort)
    if as_json:
        echo_json([asdict(run) for run in listings])
    elif listings:
        console = stdout()
        console.print(runs_table(listings, folder, console.width), highlight=False)
    else:
        echo(
            f"no runs in {folder}; python cli.py plan lists the recipes that fit into your time, "
            "with their commands"
        )


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A finished run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another finished run.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two finished runs on the same test images."""
    from dataclasses import asdict

    from distill.runs.compare_two_runs import compare as compare_runs
    from distill.terminal.compare_table import comparison_tables

    comparison = compare_runs(a, b)
    if as_json:
        echo_json(asdict(comparison))
    else:
        stdout().print(comparison_tables(comparison), highlight=False)


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
    normalize: Annotated[
        str,
        typer.Option(
            "--normalize",
            metavar="none|cifar10|MEAN/STD",
            help="Normalisation that the grader applies to images before project1's network; "
            "R,G,B/R,G,B in [0, 1].",
        ),
    ] = "cifar10",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an earlier export in --out.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a finished run's network, reload each file and check that its outputs match."""
    from distill.runs import run_folder

    if not is_main():  # only the first process writes
        return
    folder, normalisation = run_folder.open_finished(run), normalisation_of(normalize)
    with loading_libraries():
        from distill.export.export import export as export_run
        from distill.export.export import failure_message, report_lines
    from distill.terminal.progress import ProgressDisplay

    with ProgressDisplay(stderr()) as display:
        report = export_run(
            folder,
            format_,
            out,
            data,
            normalisation=normalisation,
            replace=replace,
            progress=display.progress,
        )
    print_facts(report if as_json else report_lines(report), as_json)
    if message := failure_message(report):
        raise Failure(message)


def replay(
    run: RunArgument,
    step: Annotated[int, typer.Option("--step", help="The step's number in the journal, from 1.")],
    as_json: JsonOption = False,
) -> None:
    """Repeat one step of a run, such as one that diverged, and print its loss terms."""
    from distill.runs import run_folder

    folder = run_folder.open_run(run)
    with loading_libraries():
        from distill.training.reproduce_step import repeat_step as replay_step
        from distill.training.run import process_group
    from distill.terminal.progress import ProgressDisplay

    with process_group(), ProgressDisplay(stderr()) as display:
        facts = replay_step(folder, step, progress=display.progress)
    print_facts(facts, as_json)


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
    notebook: Annotated[
        bool,
        typer.Option(
            "--notebook",
            help="Also write an executed Jupyter notebook of a student, with code and weights.",
        ),
    ] = False,
) -> None:
    """Write an HTML report: curves, results and mistakes of one run, or a comparison of several."""
    from distill.runs import run_folder

    folders = [run_folder.open_run(run) for run in dict.fromkeys(runs)]
    from distill.report import comparison, run_report
    from distill.runs.commands_to_repeat import advice_on_unfinished

    path = run_report.report_path(folders, out)
    if notebook:
        if len(folders) > 1:
            raise UserError(
                f"--notebook writes the notebook of one run, and {len(folders)} were given.\n"
                "Give one run, or leave --notebook out."
            )
        run_folder.open_finished(folders[0].path)
    curves = _test_curves(folders) if test_curve else {}
    written = _write_notebook(folders[0], path, curves) if notebook else None
    if len(folders) == 1:
        files = run_report.write(folders[0], path, _layers(folders[0]), curves.get(folders[0].path))
    else:
        files = comparison.write(folders, path, curves)
    echo(path)
    echo(f"Figures and tables for a paper: {files}", err=True)
    for folder in folders:
        if not folder.is_finished:
            echo(f"{folder.path} is not finished. {advice_on_unfinished(folder)}", err=True)
    if written is not None:
        echo(f"Notebook, with the files that it reads: {written}", err=True)


def _write_notebook(folder: "RunFolder", page: Path, curves: Mapping[Path, "TestCurve"]) -> Path:
    """Write the executed notebook of a run to a folder beside its page; return its path.

    Raises UserError if there is a notebook already or the run cannot have one, Failure if a file
    cannot be written or a cell of the notebook fails.
    """
    from distill.export.write_files_for_notebook import notebook_files
    from distill.report import notebook, run_report
    from distill.report.execute_notebook import execute
    from distill.runs.read_run_folder import read
    from distill.runs.run_folder import write_text
    from distill.terminal.progress import ProgressDisplay

    target = page.with_name(f"{page.stem}_notebook")
    notebook.check_absent(target)
    record = read(folder, curves.get(folder.path))
    with ProgressDisplay(stderr()) as display:
        files = notebook_files(folder, display.progress)
        display.progress("running the notebook", 0, 1)
        try:
            files.write(target)
            write_text(target / notebook.VALUES, notebook.values(record, files.values))
            outputs = execute(notebook.code_cells(files.code), target)
            return notebook.write(target, record, run_report.lead(record), files.code, outputs)
        except OSError as fault:
            raise Failure(
                f"The notebook cannot be written: {fault.filename or target}: "
                f"{fault.strerror or fault}.\nChoose another folder: --out DIR."
            ) from fault


def _test_curves(folders: Sequence["RunFolder"]) -> dict[Path, "TestCurve"]:
    """Measure each run's saved epochs on training and test images; keys are run folders."""
    with loading_libraries():
        from distill.evaluation.test_curve import measure_epochs
        from distill.training.run import process_group
    from distill.terminal.progress import ProgressDisplay

    with process_group(), ProgressDisplay(stderr()) as display:
        return {run.path: measure_epochs(run, progress=display.progress) for run in folders}


def _layers(folder: "RunFolder") -> Sequence["LayerRow"]:
    """Return the layers of a run's network; empty if the run has not yet recorded its network."""
    from distill.components import layer_summary
    from distill.runs.read_run_folder import read

    record = read(folder)
    if record.role is None or record.n_classes is None:
        return ()
    return layer_summary.layers_of_recipe(record.recipe, record.role, record.n_classes)
