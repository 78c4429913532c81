"""Train a cell of the CRD paper's table on CIFAR-100, and compare it with what was published.

    python -m benchmarks.published --cell TEACHER/STUDENT/METHOD [--seeds N | S S…] [--epochs N]
                                   [--data PATH] [--teacher RUN] [--workers N] [--out DIR]
                                   [--set KEY=VALUE…] [--dry-run]
    python -m benchmarks.published --table

For `--cell resnet56/resnet20/kd` trains the teacher (or takes RUN, such as an imported one), and
for each seed the student with the method and the control, the student with the labels alone, by
`python cli.py train-teacher` and `distill` with the recipes `crd_cifar100_teacher` and
`crd_cifar100`, into runs/published. One number N means the seeds 0 to N - 1, several are the seeds.
Each sets `train.seed` and `data.seed`. Cells in one folder share teachers and controls. A finished
run is not repeated and an interrupted one is resumed. `--workers` runs are trained at a time, with
one thread each. The same command may be typed several times at once, also on hosts that share the
folder: no run is trained twice. Type it again after an interruption. `--dry-run` checks the
recipes, prints the commands, and times a few steps of each to estimate the time of all.

`--epochs` shortens the training: the milestones keep their share of it, rounded to whole epochs
(`published_cells.length`), and the result is not a reproduction. Neither is one on other images
than CIFAR-100's, or with --set. `--set` sets keys of all runs, but keys of [loss] and [cache] only
of the runs with the method. The teacher's logits are not cached: every seed draws other views of
the images, so that no run could read the logits of another, and they would be rounded to float16.

After each finished run writes `results/published/TEACHER_STUDENT_METHOD.json`, with the number of
epochs in the name unless it is 240: the accuracies of the last epoch, which are the result, with
the difference to the control, seed by seed; and the best epoch's on the test split, as others
report it, measured afterwards from the saved epochs. No epoch is selected by it. `--table` prints
all cells of that folder and writes them into its README.md.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import published_cells, published_time
from benchmarks.claim import RESULTS, environment, figures, summary, top1
from benchmarks.methods import ROOT
from benchmarks.published_cells import Cell
from benchmarks.published_markdown import markdown
from benchmarks.published_runs import Plan, Run, carried_out
from benchmarks.published_time import N_CLASSES, N_TRAIN
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.evaluation import test_curve
from distill.events import measure_name
from distill.format import counted, percent
from distill.models.epoch_weights import saved_epochs
from distill.recipe import describe_network, recipe_variants, recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.schema import Teacher
from distill.runs.run_folder import RunFolder, newest_runs_in, open_finished, write_json, write_text


def plan(cell: Cell, given: argparse.Namespace) -> Plan:
    """Return the trainings of a cell. Raises UserError, with all faults, if a recipe is invalid."""
    out, epochs, suffix = given.out.resolve(), given.epochs, suffix_of(given.epochs)
    data = given.data and (
        str(Path(given.data).resolve()) if Path(given.data).exists() else given.data
    )

    def run(
        command: str, recipe: str, settings: Sequence[str], name: str, teacher: Path | None = None
    ) -> Run:
        also = overrides_for(given.overrides, has_method=bool(teacher), command=command)
        all_settings = (*settings, *also)
        return Run(command, recipe, all_settings, out / (name + suffix), teacher, data)

    teacher = None
    if given.teacher is None:
        settings = published_cells.teacher_settings(cell, epochs)
        recipe = published_cells.TEACHER_RECIPE
        teacher = run("train-teacher", recipe, settings, f"teacher_{cell.teacher}")
    path = teacher.out if teacher else Path(given.teacher).resolve()
    controls, students = {}, {}
    for seed in given.seeds:
        seeded = [f"train.seed={seed}", f"data.seed={seed}"]
        settings = [*published_cells.control_settings(cell, epochs), *seeded]
        name = f"alone_{cell.student}_seed{seed}"
        controls[seed] = run("distill", published_cells.STUDENT_RECIPE, settings, name)
        settings = [*published_cells.student_settings(cell, epochs), *seeded]
        recipe = published_cells.student_recipe(cell)
        students[seed] = run("distill", recipe, settings, f"{cell.name}_seed{seed}", path)
    planned = Plan(cell, teacher, path, controls, students)
    check(planned)
    return planned


def overrides_for(overrides: Sequence[str], *, has_method: bool, command: str) -> list[str]:
    """Return those --set that concern a training.

    Keys of [loss] and [cache] are the method's alone, and those of [student] not the teacher's.
    """
    skipped = [] if has_method else ["loss", "cache"]
    skipped += ["student"] if command == "train-teacher" else []
    return [each for each in overrides if re.split(r"[.=]", each, maxsplit=1)[0] not in skipped]


def check(planned: Plan) -> None:
    """Raise UserError, with all faults, if a recipe is invalid or the teacher another network."""
    faults = []
    for run in planned.runs:
        try:
            recipes.load(run.recipe, run.settings)
        except UserError as fault:
            faults.append(str(fault))
    if planned.teacher is None:
        result = open_finished(planned.teacher_path).result()
        expected = describe_network.summary(Teacher(network=planned.cell.teacher))
        if result["network"] != expected:
            faults.append(
                f"--teacher {planned.teacher_path} is {result['network']}, and the teacher of the "
                f"cell is {expected}; give a run of {planned.cell.teacher}, or leave --teacher out"
            )
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def suffix_of(epochs: int) -> str:
    """Return what names of runs and results end with: nothing for 240 epochs."""
    return "" if epochs == published_cells.EPOCHS else f"_{epochs}_epochs"


def finished(name: str, given: argparse.Namespace) -> dict[int, RunFolder]:
    """Return the finished runs `name` in --out by seed, those of earlier calls too."""
    pattern = re.compile(re.escape(name) + r"_seed([0-9]{1,9})" + suffix_of(given.epochs))
    found = {}
    for run in newest_runs_in(given.out):
        match = pattern.fullmatch(run.path.name)
        if match and run.is_finished:
            found[int(match[1])] = run
    return dict(sorted(found.items()))


def result(planned: Plan, given: argparse.Namespace) -> dict[str, Any] | None:
    """Return the content of a cell's JSON file from the runs that are finished; None if none is."""
    cell = planned.cell
    students, controls = finished(cell.name, given), finished(f"alone_{cell.student}", given)
    everything = [*students.values(), *controls.values()]
    teacher = RunFolder(planned.teacher_path)
    if not everything or not teacher.is_finished:
        return None
    for runs in (students, controls):
        check_alike(list(runs.values()), everything)
    departures = list(departures_of(given, everything[0]))
    content = {
        "cell": str(planned.cell),
        "is_reproduction": not departures,
        "departures": departures,
        "epochs": given.epochs,
        "length": {
            "method": published_cells.length(planned.cell.method, given.epochs)._asdict(),
            "control": published_cells.length(None, given.epochs)._asdict(),
        },
        "measure": measure_name("top1", "test"),
        "seeds": {"method": list(students), "control": list(controls)},
        "method": accuracies(students),
        "control": accuracies(controls),
        "difference": difference(students, controls),
        "teacher": figures(teacher) | {"top1": top1(teacher)},
        "published": published_figures(planned.cell),
        "each": [figures(run) | {"best_on_test": best_on_test(run)} for run in everything],
        "environment": environment(everything[0]),
        "commands": [run.shown for run in planned.runs],
    }
    content["distance"] = distances(content)
    content["minutes"] = minutes(teacher, students, controls)
    content["full_cell"] = full_cell(content, given)
    return content


def check_alike(seeds: Sequence[RunFolder], runs: Sequence[RunFolder]) -> None:
    """Raise UserError if runs of one cell differ in more than their seeds.

    `seeds`: runs of one recipe. `runs`: all runs of the cell, which need the same images.
    """
    found = {
        "images": {run.result()["data"]["fingerprint"] for run in runs},
        "teacher": {run.result()["teacher"]["fingerprint"] for run in seeds},
        "recipe": {
            recipe_fingerprint(recipe_variants.with_seed(with_names(recipes.read(run.recipe)), 0))
            for run in seeds
        },
    }
    differing = [name for name, values in found.items() if len(values) > 1]
    if differing:
        raise UserError(
            f"the runs in {runs[0].path.parent} differ in {' and '.join(differing)}, so that they "
            "do not make a cell; give another --out"
        )


def with_names(recipe: recipes.Recipe) -> recipes.Recipe:
    """Return the recipe without the paths of its images and teacher."""
    return recipe_variants.with_source(recipe, "").model_copy(update={"teacher": None})


def departures_of(given: argparse.Namespace, run: RunFolder) -> Iterator[str]:
    """Yield in what a cell differs from the published training."""
    if given.epochs != published_cells.EPOCHS:
        epochs = counted(given.epochs, "epoch", "epochs")
        yield f"{epochs} instead of {published_cells.EPOCHS}"
    content = run.result()
    shape = len(content["class_names"]), content["data"]["train_images"]
    if shape != (N_CLASSES, N_TRAIN):
        yield f"{shape[1]:,} training images of {shape[0]} classes instead of CIFAR-100"
    yield from (f"--set {override}" for override in given.overrides)


def accuracies(runs: dict[int, RunFolder]) -> dict[str, Any] | None:
    """Return the last epoch's accuracies of runs by seed, and the best epoch's on test."""
    if not runs:
        return None
    best = [best_on_test(run) for run in runs.values()]
    known = [each["top1"] for each in best if each is not None]
    return {
        "last_epoch": summary([top1(run) for run in runs.values()]),
        "best_on_test": {
            "note": "as others report it; no epoch is selected by it",
            **summary(known),
        }
        if known
        else None,
    }


def best_on_test(run: RunFolder) -> dict[str, Any] | None:
    """Return the best test accuracy of the saved epochs, and that epoch; None if none is saved."""
    return _best_on_test(run.path)


@cache  # a finished run does not change, and its weights are hashed
def _best_on_test(path: Path) -> dict[str, Any] | None:
    run = RunFolder(path)
    if not saved_epochs(run):
        return None
    name = measure_name("top1", "test")
    curve = {epoch: measured[name] for epoch, measured in test_curve.measure_epochs(run).items()}
    best = max(curve, key=lambda epoch: curve[epoch])
    return {"top1": curve[best], "epoch": best, "epochs_measured": len(curve)}


def difference(
    students: dict[int, RunFolder], controls: dict[int, RunFolder]
) -> dict[str, Any] | None:
    """Return the differences of last-epoch accuracies, for seeds whose two runs are finished."""
    values = [top1(run) - top1(controls[s]) for s, run in students.items() if s in controls]
    return summary(values) if values else None


def published_figures(cell: Cell) -> dict[str, Any]:
    """Return the published accuracies of a cell, 0..1, and their source."""
    method, student = published_cells.accuracy(cell), published_cells.alone("student", cell.student)
    return {
        "method": method,
        "control": student,
        "teacher": published_cells.alone("teacher", cell.teacher),
        "difference": None if method is None else method - student,
        "measure": "best epoch on the test split",
        "source": published_cells.source(cell),
    }


def distances(content: dict[str, Any]) -> dict[str, Any]:
    """Return how many of its own standard errors each accuracy is above the published one.

    None with fewer than two seeds. The published figures have errors of their own, which their
    sources do not give.
    """
    found: dict[str, Any] = {}
    for row in ("method", "control"):
        for measure in ("last_epoch", "best_on_test"):
            values = content[row] and content[row][measure]
            found[f"{row}/{measure}"] = standard_errors(values, content["published"][row])
    return found


def standard_errors(values: dict[str, Any] | None, published: float | None) -> float | None:
    """Return (mean - published) in standard errors of the mean; None if it is not defined."""
    if not values or published is None or not values["std"]:
        return None
    return float((values["mean"] - published) / (values["std"] / values["n"] ** 0.5))


def minutes(
    teacher: RunFolder, students: dict[int, RunFolder], controls: dict[int, RunFolder]
) -> dict[str, Any]:
    """Return the minutes of training of each run, the teacher's 0 if it was imported."""
    timed = {"method": students, "control": controls}
    found: dict[str, Any] = {
        row: summary([run.result()["elapsed_s"] / 60 for run in runs.values()]) if runs else None
        for row, runs in timed.items()
    }
    return found | {"teacher": teacher.result()["elapsed_s"] / 60}


def full_cell(content: dict[str, Any], given: argparse.Namespace) -> dict[str, Any] | None:
    """Return the time that the whole cell would take here, in proportion to the measured epochs.

    None until a run of the method and one of the control are finished.
    """
    measured = content["minutes"]
    if not measured["method"] or not measured["control"]:
        return None
    share = published_cells.EPOCHS / given.epochs
    each = {row: share * measured[row]["mean"] for row in ("method", "control")}
    of_teacher = content["teacher"]["epochs"]  # 0 if it was imported
    teacher = published_cells.EPOCHS / of_teacher * measured["teacher"] if of_teacher else 0.0
    seeds = len(given.seeds)
    hours = (teacher + seeds * sum(each.values()) / given.workers) / 60
    return {
        "epochs": published_cells.EPOCHS,
        "minutes_per_run": each | {"teacher": teacher},
        "seeds": seeds,
        "workers": given.workers,
        "hours": hours,
    }


def check_before(planned: Plan, given: argparse.Namespace) -> None:
    """Raise UserError if the images are missing, or if the JSON file would not be replaced.

    The number of images, which may be a departure too, is compared by `written`.
    """
    source = planned.runs[0].data
    load_data_set.check(source or "cifar100")
    path = file_of(planned.cell, given)
    if path.exists():
        before = json.loads(path.read_text())
        seeds = {*finished(planned.cell.name, given), *given.seeds}
        before["departures"] = [each for each in before["departures"] if each.startswith("--set ")]
        check_replaced(before, seeds, [f"--set {override}" for override in given.overrides], given)


def written(planned: Plan, given: argparse.Namespace) -> dict[str, Any] | None:
    """Write a cell's JSON file and return its content; None if no run is finished.

    Raises UserError if the file that exists has other settings, or seeds that --out does not have.
    """
    content, path = result(planned, given), file_of(planned.cell, given)
    if content is None:
        return None
    if path.exists():
        before = json.loads(path.read_text())
        check_replaced(before, content["seeds"]["method"], content["departures"], given)
    write_json(path, content)
    return content


def check_replaced(
    before: dict[str, Any],
    seeds: Collection[int],
    departures: Sequence[str],
    given: argparse.Namespace,
) -> None:
    """Raise UserError if a cell's JSON file has seeds that are not in `seeds`, or other departures.

    `before`: the content of the file.
    """
    lost = sorted({*before["seeds"]["method"]} - {*seeds})
    faults = [f"the seeds {', '.join(map(str, lost))}, which {given.out} does not"] * bool(lost)
    if before["departures"] != departures:
        faults.append(f"other settings: {'; '.join(before['departures']) or 'none'}")
    if faults:
        path = file_of(published_cells.parse(before["cell"]), given)
        raise UserError(
            f"{path} has {' and '.join(faults)}; it is not replaced. The runs are in "
            f"{given.out}; give another --results"
        )


def file_of(cell: Cell, given: argparse.Namespace) -> Path:
    """Return the path of a cell's JSON file."""
    path: Path = given.results / f"{cell.name}{suffix_of(given.epochs)}.json"
    return path


def table(folder: Path) -> str:
    """Return all cells in a folder as Markdown, and write them into its README.md."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not rows:
        raise UserError(
            f"{folder} has no cell yet; type\n"
            "python -m benchmarks.published --cell resnet56/resnet20/kd"
        )
    text = markdown(rows)
    write_text(folder / "README.md", text)
    return text


def published_text(cell: Cell) -> str:
    """Return a sentence with the published accuracies of a cell, in percent."""
    return (
        f"published: {percent(published_cells.accuracy(cell))} for {cell} "
        f"({published_cells.source(cell)}), "
        f"{percent(published_cells.alone('student', cell.student))} for the student alone, "
        f"{percent(published_cells.alone('teacher', cell.teacher))} for the teacher"
    )


def seeds(words: Sequence[int]) -> list[int]:
    """Return the seeds: one number is how many there are, several are the seeds themselves."""
    return list(range(words[0])) if len(words) == 1 else sorted(set(words))


def arguments_of(words: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser of the command line, and what was typed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cell", metavar="TEACHER/STUDENT/METHOD", help="the cell to train")
    parser.add_argument("--table", action="store_true", help="print all results")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[5], help="their number (5), or two or more seeds"
    )
    epochs, folder = published_cells.EPOCHS, ROOT / "runs" / "published"
    parser.add_argument("--epochs", type=int, default=epochs, help="of each training (%(default)s)")
    parser.add_argument("--data", help="the images of CIFAR-100 (cifar100)")
    parser.add_argument("--teacher", metavar="RUN", help="a finished teacher, instead of a new one")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (%(default)s)")
    parser.add_argument("--out", type=Path, default=folder, help="folder of the runs")
    results = RESULTS / "published"
    parser.add_argument("--results", type=Path, default=results, help="folder of the results")
    parser.add_argument(
        "--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="keys of the recipes of all runs",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the commands, the published accuracy and the estimated time only",
    )
    given = parser.parse_args(words)
    given.seeds = seeds(given.seeds)
    if bool(given.cell) == given.table:
        parser.error("type either --cell TEACHER/STUDENT/METHOD or --table")
    for name, value in (("epochs", given.epochs), ("workers", given.workers)):
        if value < 1:
            parser.error(f"--{name} is {value}; allowed: 1 or more")
    if not given.seeds or min(given.seeds) < 0:
        parser.error("--seeds has no seed, or a negative one; type --seeds 5, or --seeds 0 1 2")
    return parser, given


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser, given = arguments_of(words)
    torch.set_num_threads(1)  # the runs of other workers compute meanwhile
    try:
        if given.table:
            print(table(given.results))
            return
        planned = plan(published_cells.parse(given.cell), given)
        if given.dry_run:
            print("\n".join(shlex.join(["python", *run.typed[1:]]) for run in planned.runs))
            print(published_text(planned.cell), file=sys.stderr)
            print(published_time.estimate_text(planned), file=sys.stderr)
            return
        check_before(planned, given)
        content = None
        with closing(carried_out(planned, given.workers)) as finished_runs:
            for _ in finished_runs:
                content = written(planned, given)
    except UserError as fault:
        parser.error(str(fault))
    except KeyboardInterrupt:
        print("\nStopped. Type the same command to continue.", file=sys.stderr)
        sys.exit(130)
    if content is not None:
        print(markdown([content]))


if __name__ == "__main__":
    main()
