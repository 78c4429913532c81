"""Measure the speed of a training step on images of different sizes.

    python -m benchmarks.resolution [--recipe R] [--set KEY=VALUE …] [--sides 20 26 32] [--rounds N]

Takes a full step at each image size, in one process; the order of the sizes is reversed from round
to round. Reports medians over the rounds, without the warm-up. `images_per_s` is in wall-clock
time, `images_per_cpu_s` in CPU time, which other programs affect less. `speedup` is the CPU time of
a step at the largest size divided by that at this size. For CPUs only: the benchmark does not
synchronise with a GPU.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.peers import typed
from benchmarks.stages import prepared
from distill.components.build_accelerator import build_accelerator
from distill.errors import UserError
from distill.recipe import recipes
from distill.training import environment, loop
from distill.training.train_state import TrainState

WARMUP_STEPS = 2  # per image size


def measured(run: TrainState, sides: Sequence[int], rounds: int) -> dict[int, dict[str, float]]:
    """Return `images_per_s`, `images_per_cpu_s` and `speedup` at each image size.

    `sides`: the image sizes in pixels.
    """
    wall_s: dict[int, list[float]] = defaultdict(list)
    cpu_s: dict[int, list[float]] = defaultdict(list)
    run.model_ddp.train()
    for turn in range(-1, rounds):  # round -1 is the warm-up
        for side in sides if turn % 2 else reversed(sides):
            with run.loader.at_side(None if side == run.loader.size else side):
                run.loader.view(0)  # drawn once per epoch, so it is not part of the step
                for _ in range(WARMUP_STEPS if turn < 0 else 1):
                    began_at, began_cpu_at = time.perf_counter(), time.process_time()
                    loop.step(run, 0)
                    if turn >= 0:
                        wall_s[side].append(time.perf_counter() - began_at)
                        cpu_s[side].append(time.process_time() - began_cpu_at)
    batch, largest = run.loader.batch_size, max(sides)
    return {
        side: {
            "images_per_s": batch / median(wall_s[side]),
            "images_per_cpu_s": batch / median(cpu_s[side]),
            "speedup": median(cpu_s[largest]) / median(cpu_s[side]),
        }
        for side in sides
    }


def report(spec: str, sets: Sequence[str], sides: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure a recipe on synthetic images; return the results as values for JSON.

    `spec`: a recipe's name, path or composition a+b. `sets`: KEY=VALUE. `sides`: image sizes in
    pixels.
    """
    recipe = recipes.load(spec, ["data.source=synthetic", *sets]).recipe
    accel = build_accelerator(recipe)
    run = prepared(recipe)
    return {
        "recipe": spec,
        "batch_size": run.loader.batch_size,
        "rounds": rounds,
        "sides": measured(run, sides, rounds),
        "environment": environment.describe(accel) | {"command": typed("benchmarks.resolution")},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module; it prints JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resolution", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipe", default="fast_teacher")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--sides", type=int, nargs="+", default=[20, 26, 32])
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args(arguments)
    try:
        print(json.dumps(report(given.recipe, given.set, given.sides, given.rounds), indent=1))
    except UserError as fault:
        parser.error(str(fault))


if __name__ == "__main__":
    main()
