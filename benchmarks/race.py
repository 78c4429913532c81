"""Compare the accuracies that several training systems reach in the same time on one core.

    python -m benchmarks.race [--teacher RUN] [--minutes 60] [--names NAME…] [--data PATH]
                              [--set KEY=VALUE…]

First measures how long each entry of `ENTRIES` takes per image with one thread, in a few minutes in
which nothing else should run, and saves it in `results/race_speeds.json`. Then trains each entry
for the number of epochs that fit into the minutes at this speed, one after the other, into
`runs/race/<name>`; other programs may run meanwhile, and the runs may be on other machines, since
this does not change the number of epochs. A finished run is not repeated, and an interrupted one is
resumed. All entries train on all images: nothing is held out, and the last epoch's weights are the
result. The entry `distilled` uses the teacher RUN, by default this comparison's run of `alone`; its
training time is not counted but reported, nor is the time to compute its logits.

After each entry writes `results/race.json` and `results/race.svg` (test accuracy over minutes),
which keep the entries of earlier calls; prints the table at the end. The weights of every epoch are
saved, and measured on the test split after the training; no epoch is selected by these
measurements.
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
from distill.recipe import compare_recipes, recipes
from distill.report import figure_style
from distill.report.matplotlib_defaults import matplotlib
from distill.report.plots import new_figure
from distill.runs import read_predictions
from distill.runs.run_folder import RunFolder, open_finished, write_json, write_text
from distill.statistics import wilson
from distill.training import measure_speed

ROUNDS = 3  # each measures every entry once
N_IMAGES = 4096  # random images that are trained on while the speed is measured
MOST_S = 120.0  # seconds to measure one entry in a round
N_TRAIN = 50_000  # all training images of CIFAR-10
N_CLASSES = 10
ALL_IMAGES = ("data.holdout=0", "train.keep_epochs=1")
IN_EPOCHS = ("optim.warmup_epochs", "ema.half_life")


class Entry(NamedTuple):
    """One of the compared systems, and the arguments of `distill` that train it."""

    title: str
    recipe: str
    overrides: tuple[str, ...] = ()  # KEY=VALUE
    is_taught: bool = False  # whether it has a teacher
    scaled: tuple[str, ...] = ()  # keys in epochs, whose share of the epochs stays the recipe's


ENTRIES = {
    "report-2111": Entry("report of 2022, [2, 1, 1, 1]", "recipes/reports/nyu2022_2111.toml"),
    "report-n3": Entry("report of 2022, [2, 2, 2]", "recipes/reports/nyu2022_n3_b2_c85.toml"),
    "report-512": Entry("report of 2023, [3, 6, 1]", "recipes/reports/nyu2023_res_512.toml"),
    "plain": Entry(
        "student of kd, labels alone",
        "kd",
        ("loss.kd=false", "loss.hard.weight=1.0"),
        scaled=IN_EPOCHS[:1],
    ),
    "alone": Entry("fast_alone", "fast_alone", scaled=IN_EPOCHS),
    "distilled": Entry("fast_kd", "fast_kd", ("cache={}",), is_taught=True, scaled=IN_EPOCHS),
}


def speeds(given: argparse.Namespace) -> dict[str, float]:
    """Return the seconds per training image of each entry: of the fastest step in ROUNDS rounds.

    Reads those that an earlier call saved. The time of a teacher is subtracted: its logits are
    cached.
    """
    path = given.results / "race_speeds.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    names = [name for name in given.names if name not in known]
    torch.set_num_threads(1)
    images = measure_speed.random_images(N_IMAGES, N_CLASSES)
    for _, name in product(range(ROUNDS), names):
        entry = ENTRIES[name]
        recipe = recipes.load(entry.recipe, overrides(entry, given)).recipe
        teacher = recipes.load("fast_teacher").recipe if entry.is_taught else None
        until = time.monotonic() + MOST_S
        speed = measure_speed.measure(
            recipe, "student", teacher, images, until, most_step_s=math.inf
        )
        known[name] = min(known.get(name, math.inf), speed.fastest_s - speed.teacher_s)
    write_json(path, known)
    return known


def epochs_within(minutes: float, image_s: float) -> int:
    """Return how many epochs of all training images fit into the minutes; at least one."""
    return max(1, int(60 * minutes / (image_s * N_TRAIN)))


def overrides(entry: Entry, given: argparse.Namespace) -> list[str]:
    """Return the `key=value` settings of an entry, without the number of epochs."""
    return [*entry.overrides, *ALL_IMAGES, *given.overrides]


def command(entry: Entry, given: argparse.Namespace, out: Path, epochs: int) -> list[str]:
    """Return the `distill` command that trains one entry for this number of epochs."""
    sets = [*overrides(entry, given), *rescaled(entry, epochs), f"train.epochs={epochs}"]
    options = [part for each in sets for part in ("--set", each)]
    if given.data:
        options += ["--data", given.data]
    if entry.is_taught:
        options += ["--teacher", str(teacher_folder(given))]
    typed = ["distill", "--recipe", entry.recipe, *options, "--out", str(out), "--resume"]
    return [sys.executable, "cli.py", *typed]


def rescaled(entry: Entry, epochs: int) -> list[str]:
    """Return the `key=value` settings of an entry that are proportional to its epochs."""
    recipe = recipes.load(entry.recipe).recipe
    content = compare_recipes.values(recipe)
    share = epochs / (recipe.train.epochs or epochs)
    return [f"{key}={share * content[key]:g}" for key in entry.scaled]


def teacher_folder(given: argparse.Namespace) -> Path:
    """Return the run folder of the teacher of `distilled`."""
    return Path(given.teacher).resolve() if given.teacher else given.out.resolve() / "alone"


def row(name: str, run: RunFolder, image_s: float) -> dict[str, Any]:
    """Return an entry's accuracy on the test split with its interval, its curve and its cost."""
    predictions = read_predictions.read_run(run)
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
        "teacher_top1": run.result()["teacher"]["top1"] if ENTRIES[name].is_taught else None,
        "environment": environment(run),
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
    parser.add_argument("--teacher")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--names", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--data")
    parser.add_argument("--set", dest="overrides", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "race")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    try:
        seconds = speeds(given)
        for name in given.names:
            out = given.out / name
            train(
                command(ENTRIES[name], given, out, epochs_within(given.minutes, seconds[name])), out
            )
            rows = save(given, row(name, open_finished(out), seconds[name]))
    except UserError as fault:
        parser.error(str(fault))
    print(markdown(rows))


def save(given: argparse.Namespace, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a row to `race.json`, draw `race.svg`; return all rows, in the order of `ENTRIES`."""
    path = given.results / "race.json"
    known = json.loads(path.read_text())["table"] if path.exists() else []
    by_name = {each["name"]: each for each in known} | {measured["name"]: measured}
    rows = [by_name[name] for name in ENTRIES if name in by_name]
    write_json(path, {"minutes": given.minutes, "table": rows})
    write_text(given.results / "race.svg", drawing(rows))
    return rows


if __name__ == "__main__":
    main()
