"""Measure how the cost of a run grows with images, parameters, batch size, views and processes.

    python -m benchmarks.scaling [images parameters batch views processes] [--rounds N] [--json]

Varies one quantity at a time. Each point is a complete run in a separate process: a small student
is distilled from a small teacher for some epochs. `startup_s` is the time from the end of the
imports to the start event of the run, `epoch_s` the median time of the epochs after the first,
including validation and checkpoint, and `ms` the milliseconds of such an epoch per image.

Points are measured in rounds whose order alternates, so that a slow minute affects all of them; the
median over rounds is reported. `ratio` is the time per image divided by the time per image at the
first point: on the axis `images`, 1 means that the time of an epoch is proportional to the number
of images.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.peers import found_data, typed
from distill.components.build_accelerator import build_accelerator
from distill.errors import UserError
from distill.events import Epoch, Start
from distill.recipe import recipe_variants, recipes
from distill.training import environment
from distill.training.run import TrainingRequest, process_group, train_and_test

ROOT = Path(__file__).resolve().parents[1]
# A student of 19,954 parameters and a small teacher: an epoch takes seconds on two cores.
SMALL = (
    "student.stages=3", "student.blocks=1", "student.width=8", "optim.warmup_epochs=0",
    "train.batch_size=128", "train.epochs=3", "train.log_every=1000", "data.train_images=5000",
)  # fmt: skip
TEACHER = ("teacher.depth=10", "teacher.widen=1", "mix.cutmix=false", "train.epochs=1")


@dataclass(frozen=True)
class Axis:
    """A quantity that is varied, and how a recipe is changed for each of its values."""

    name: str
    points: dict[int, tuple[str, ...]]  # recipe overrides by value
    processes: dict[int, int] | None = None  # number of processes by value; None: one for all


AXES = {
    "images": Axis(
        "images",
        {
            n: (f"data.train_images={n}", "data.holdout=0.0")
            for n in (5_000, 10_000, 20_000, 50_000)
        },
    ),
    "parameters": Axis("width", {n: (f"student.width={n}",) for n in (4, 8, 16, 32)}),
    "batch": Axis("batch", {n: (f"train.batch_size={n}",) for n in (32, 128, 512)}),
    "views": Axis("views", {n: (f"cache.views={n}", "train.epochs=6") for n in (1, 2, 6)}),
    "processes": Axis("processes", {1: (), 2: ()}, {1: 1, 2: 2}),
}
QUICK = {"images": (160, 320), "parameters": (4, 8), "batch": (8, 16), "views": (1, 2)}


def point(teacher: str, data: str, out: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Train one student in this process; return its times, speed and number of parameters.

    `teacher`: a run folder. `data`: data source. `out`: the run folder to write. `overrides`:
    KEY=VALUE.
    """
    resolved = recipes.load("kd", [*SMALL, f"data.source={data}", *overrides])
    recipe = recipe_variants.with_teacher(resolved.recipe, [teacher])
    began_at = time.perf_counter()
    moments: list[float] = []
    with process_group():
        for event in train_and_test(TrainingRequest("student", recipe, "kd", Path(out))):
            if isinstance(event, Start):
                start, startup_s = event, time.perf_counter() - began_at
            if isinstance(event, Start | Epoch):
                moments.append(time.perf_counter())
    spans = [later - earlier for earlier, later in pairwise(moments)]
    epoch_s = median(spans[1:])
    images = start.steps_per_epoch * start.batch_size
    return {
        "startup_s": startup_s,
        "first_epoch_s": spans[0],
        "epoch_s": epoch_s,
        "images_per_s": images / epoch_s,
        "ms": 1000 * epoch_s / images,
        "parameters": start.parameters,
    }


def measured(axis: Axis, teacher: Path, data: str, rounds: int) -> dict[int, dict[str, float]]:
    """Measure every point of an axis; return the medians over the rounds."""
    results: dict[int, list[dict[str, float]]] = {value: [] for value in axis.points}
    for turn in range(rounds):
        values = list(axis.points)
        for value in values if turn % 2 == 0 else reversed(values):
            with tempfile.TemporaryDirectory() as folder:
                environ = {**os.environ, "UNDERSTUDY_CACHE": f"{folder}/cache"}
                count = (axis.processes or {}).get(value, 1)
                result = _child(axis.points[value], teacher, data, folder, count, environ)
                results[value].append(result)
                line = "{epoch_s:.2f} s per epoch".format_map(result)
                print(f"round {turn + 1}, {axis.name} {value}: {line}", file=sys.stderr)
    return {
        value: {name: median(row[name] for row in rows) for name in rows[0]}
        for value, rows in results.items()
    }


def _child(
    overrides: Sequence[str],
    teacher: Path,
    data: str,
    folder: str,
    count: int,
    environ: dict[str, str],
) -> dict[str, float]:
    """Measure one point in a new process, or in `count` processes of one run.

    `folder`: a temporary folder for the run. `environ`: environment variables.
    """
    launch = [sys.executable]
    if count > 1:
        launch += [
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={count}",
            f"--master_port={free_port()}",
        ]
    arguments = json.dumps([str(teacher), data, f"{folder}/run", list(overrides)])
    command = [*launch, "-m", "benchmarks.scaling", "--point", arguments]
    if count > 1:
        environ = environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environ, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def free_port() -> int:
    """Return a local TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def report(names: Sequence[str], data: str, rounds: int, quick: bool) -> dict[str, Any]:
    """Measure the axes `names`; return the results as values for JSON.

    `quick`: measure two points per axis, on 320 images.
    """
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher"
        sets = [
            *SMALL,
            *TEACHER,
            f"data.source={data}",
            *(["data.train_images=320"] if quick else []),
        ]
        recipe = recipes.load("teacher_wrn", sets).recipe
        list(train_and_test(TrainingRequest("teacher", recipe, "teacher_wrn", teacher)))
        axes = {
            name: measured(_small(AXES[name]) if quick else AXES[name], teacher, data, rounds)
            for name in names
        }
    return {
        "data": data,
        "rounds": rounds,
        "axes": {name: ratios(points, by=_ratio_key(name)) for name, points in axes.items()},
        "environment": environment.describe(build_accelerator(recipe))
        | {"command": typed("benchmarks.scaling")},
    }


def _small(axis: Axis) -> Axis:
    """Return an axis with two points on 320 images, in place of `axis`."""
    few = ("data.train_images=320", "train.batch_size=16")
    name = next(name for name, known in AXES.items() if known is axis)
    values = QUICK.get(name, tuple(axis.points))
    keys = {
        "images": "data.train_images",
        "parameters": "student.width",
        "batch": "train.batch_size",
        "views": "cache.views",
    }
    points = {v: (*few, *([f"{keys[name]}={v}"] if name in keys else [])) for v in values}
    return Axis(axis.name, points, axis.processes)


def _ratio_key(axis: str) -> str:
    """Return the key to compute `ratio` from: `epoch_s` on the axis `images`, else `ms`."""
    return "epoch_s" if axis == "images" else "ms"


def ratios(points: dict[int, dict[str, float]], by: str) -> dict[int, dict[str, float]]:
    """Add `ratio`, the time per image divided by the time per image at the first point.

    `points`: measurements by value. `by`: the key that is compared, `ms` or `epoch_s`.
    """
    first = next(iter(points))
    return {
        value: figures
        | {"ratio": figures[by] / points[first][by] / (value / first if by == "epoch_s" else 1)}
        for value, figures in points.items()
    }


def table(name: str, points: dict[int, dict[str, float]]) -> Table:
    """Return a table of the points of the axis `name`, for the terminal."""
    result = Table(box=SIMPLE_HEAD, title=name)
    for heading in (AXES[name].name, "start-up s", "epoch s", "images/s", "ms/image", "ratio"):
        result.add_column(heading, justify="right")
    for value, figures in points.items():
        result.add_row(
            f"{value:,}",
            f"{figures['startup_s']:.2f}",
            f"{figures['epoch_s']:.2f}",
            f"{figures['images_per_s']:,.0f}",
            f"{figures['ms']:.3f}",
            f"{figures['ratio']:.2f}",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"any of {', '.join(AXES)} [all]")
    parser.add_argument("--data", help="the data set [cifar10 if it is found, else synthetic]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two points per axis, 320 images")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.point:
        measured_point = point(*json.loads(given.point))
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(measured_point))
        return
    unknown = sorted(set(given.axes) - set(AXES))
    if unknown:
        parser.error(f"unknown axis {', '.join(unknown)}; allowed: {', '.join(AXES)}")
    try:
        data = given.data or ("synthetic" if given.quick else found_data())
        content = report(given.axes or list(AXES), data, given.rounds, given.quick)
    except UserError as fault:
        parser.error(str(fault))
    if given.json:
        print(json.dumps(content))
    else:
        for name, points in content["axes"].items():
            Console().print(table(name, points))


if __name__ == "__main__":
    main()
