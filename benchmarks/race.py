"""Compare the accuracies that several training systems reach in the same time on one core.

    python -m benchmarks.race --teacher RUN [--minutes 60] [--names NAME…] [--data PATH]
                              [--set KEY=VALUE…]

First measures how long each entry of `ENTRIES` takes per image with one thread, in a few minutes in
which nothing else should run, and saves it in `runs/race/speeds.json`. Then trains each entry for
the number of epochs that fit into the minutes at this speed, one after the other, into
`runs/race/<name>`; other programs may run meanwhile, since they do not change the number of epochs.
A finished run is not repeated, and an interrupted one is resumed. All entries train on all images:
nothing is held out, and the last epoch's weights are the result. The entry `distilled` uses the
teacher RUN, whose own training time is not counted but reported, nor is the time to compute its
logits, which are read from the cache if an earlier run has cached them.

Writes `results/race.json` and `results/race.svg` (test accuracy over minutes) and prints the table.
The weights of every epoch are saved, and measured on the test split after the training; no epoch is
selected by these measurements.
"""

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.claim import RESULTS, environment, figures, top1
from benchmarks.methods import ROOT, train
from distill.errors import UserError
from distill.evaluation import test_curve
from distill.events import measure_name
from distill.recipe import recipes
from distill.report import figure_style
from distill.report.matplotlib_defaults import matplotlib
from distill.report.plots import new_figure
from distill.runs import saved_predictions
from distill.runs.run_folder import RunFolder, open_finished, write_json, write_text
from distill.statistics import wilson
from distill.training import measure_speed

ROUNDS = 3  # each measures every entry once
N_IMAGES = 4096  # random images that are trained on while the speed is measured
MOST_S = 30.0  # seconds to measure one entry in a round
ALL_IMAGES = ("data.holdout=0", "train.keep_epochs=1")


class Entry(NamedTuple):
    """One of the compared systems, and the arguments of `distill` that train it."""

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()  # KEY=VALUE
    is_taught: bool = False  # whether it has a teacher


ENTRIES = {
    "report-2111": Entry("report of 2022, [2, 1, 1, 1]", "recipes/reports/nyu2022_2111.toml"),
    "report-n3": Entry("report of 2022, [2, 2, 2]", "recipes/reports/nyu2022_n3_b2_c85.toml"),
    "report-512": Entry("report of 2023, [3, 6, 1]", "recipes/reports/nyu2023_res_512.toml"),
    "plain": Entry("student of kd, labels alone", "kd", ("loss.kd=false", "loss.hard.weight=1.0")),
    "alone": Entry("fast_alone", "fast_alone"),
    "distilled": Entry("fast_kd", "fast_kd", ("cache={}",), is_taught=True),
}


def speeds(given: argparse.Namespace, teacher: RunFolder) -> dict[str, float]:
    """Return the seconds per training image of each entry: of the fastest step in ROUNDS rounds.

    Reads those that an earlier call saved. The teacher's part is subtracted: its logits are cached.
    """
    path = given.out / "speeds.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    names = [name for name in given.names if name not in known]
    torch.set_num_threads(1)
    for _, name in product(range(ROUNDS), names):
        entry = ENTRIES[name]
        recipe = recipes.load(entry.recipe, overrides(entry, given)).recipe
        taught_by = recipes.read(teacher.recipe) if entry.is_taught else None
        images = measure_speed.random_images(N_IMAGES, len(teacher.result()["class_names"]))
        until = time.monotonic() + MOST_S
        speed = measure_speed.measure(recipe, "student", taught_by, images, until)
        known[name] = min(known.get(name, math.inf), speed.fastest_s - speed.teacher_s)
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(path, known)
    return known


def epochs_within(minutes: float, image_s: float, n_images: int) -> int:
    """Return how many epochs of `n_images` images fit into the minutes; at least one."""
    return max(1, int(60 * minutes / (image_s * n_images)))


def overrides(entry: Entry, given: argparse.Namespace) -> list[str]:
    """Return the `key=value` settings of an entry, without the number of epochs."""
    return [*entry.overrides, *ALL_IMAGES, *given.overrides]


def command(entry: Entry, given: argparse.Namespace, out: Path, epochs: int) -> list[str]:
    """Return the `distill` command that trains one entry for this number of epochs."""
    sets = [*overrides(entry, given), f"train.epochs={epochs}"]
    options = [part for each in sets for part in ("--set", each)]
    if given.data:
        options += ["--data", given.data]
    if entry.is_taught:
        options += ["--teacher", given.teacher]
    typed = ["distill", "--recipe", entry.recipe, *options, "--out", str(out), "--resume"]
    return [sys.executable, "cli.py", *typed]


def row(name: str, run: RunFolder, image_s: float) -> dict[str, Any]:
    """Return an entry's accuracy on the test split with its interval, its curve and its cost."""
    predictions = saved_predictions.read_run(run)
    assert predictions is not None, f"{run.evaluation} is missing"
    right = predictions.is_correct
    low, high = wilson(int(right.sum()), len(right))
    minutes = image_s * run.result()["data"]["train_images"] / 60
    return figures(run) | {
        "name": name,
        "title": ENTRIES[name].title,
        "top1": top1(run),
        "interval": [low, high],
        "minutes_per_epoch": minutes,
        "curve": curve(run, minutes),
    }


def curve(run: RunFolder, minutes_per_epoch: float) -> list[list[float]]:
    """Return [minutes of training, test top-1] after each epoch, at the measured speed."""
    name = measure_name("top1", "test")
    measured = sorted(test_curve.measure_epochs(run).items())
    return [[epoch * minutes_per_epoch, measures[name]] for epoch, measures in measured]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, the best system first."""
    lines = [
        "| system | parameters | epochs | top-1, test | 95 % interval |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for each in sorted(rows, key=lambda each: -each["top1"]):
        low, high = each["interval"]
        lines.append(
            f"| {each['title']} | {each['parameters']:,} | {each['epochs']} | "
            f"{each['top1']:.2%} | {low:.2%} to {high:.2%} |"
        )
    return "\n".join(lines)


def drawing(rows: Sequence[dict[str, Any]]) -> str:
    """Plot the test accuracy of each system over the minutes; return the SVG."""
    with matplotlib.rc_context(figure_style.STYLE | {"svg.hashsalt": "race"}):
        figure = new_figure(2.8)
        axes = figure.add_subplot()
        for each, colour in zip(rows, figure_style.SERIES, strict=False):
            minutes, shares = zip(*each["curve"], strict=True)
            axes.plot(minutes, [100 * share for share in shares], color=colour, label=each["title"])
        axes.set(xlabel="minutes of one core", ylabel="test accuracy, %")
        axes.set_xlim(left=0)
        figure.legend(loc="outside upper left", ncols=2)
        file = io.StringIO()
        undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=undated, facecolor=figure_style.PAPER)
    return file.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--names", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--data")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "race")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    given.teacher = str(Path(given.teacher).resolve())
    try:
        teacher = open_finished(Path(given.teacher))
        outs = {name: given.out / name for name in given.names}
        seconds = speeds(given, teacher)
        n_images = teacher.result()["data"]["train_images"]
        for name, out in outs.items():
            epochs = epochs_within(given.minutes, seconds[name], n_images)
            train(command(ENTRIES[name], given, out, epochs), out)
        runs = {name: open_finished(out) for name, out in outs.items()}
    except UserError as fault:
        parser.error(str(fault))
    rows = [row(name, run, seconds[name]) for name, run in runs.items()]
    content = {
        "minutes": given.minutes,
        "teacher": figures(teacher),
        "table": rows,
        "environment": environment(next(iter(runs.values()))),
    }
    write_json(given.results / "race.json", content)
    write_text(given.results / "race.svg", drawing(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
