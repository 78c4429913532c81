"""Measure the time of each stage of a distillation step.

    python -m benchmarks.stages [--recipe R | --pair wrn|resnet] [--batch N] [--rounds N]
                                [--operations N] [--json] [--quick]

The training state is built from the recipe as in a run. The images are synthetic and the teacher's
weights random, which does not change the time. The time of a stage is the median over rounds,
without warm-up rounds. Drawing a view and evaluating the held-out images happen once per epoch, so
their shares are computed from their time divided by the steps of an epoch. `--pair` uses the
networks and settings of `benchmarks/peers.py`. `--operations N` lists the N torch operations that
take most of a step's time.

On a GPU each stage is timed until the device is idle. A run does not wait for the device, so a
whole step is also timed without waiting inside it; `images_per_s` is the speed of the whole step.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.pairs import BATCH, PAIRS, Pair
from distill.components.build_accelerator import build_accelerator
from distill.components.build_network import build_network, network_name
from distill.data import rng
from distill.data.loader import Batch
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.events import IMAGES_PER_S, TOTAL
from distill.recipe import check_recipe_role, recipe_variants, recipes
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import RunFolder
from distill.teacher.build_teacher import combine_teachers
from distill.teacher.teacher import FrozenTeacher
from distill.training import build, environment, loop, optim
from distill.training.train_state import TrainState

WARMUP_ROUNDS = 2
ONCE_PER_EPOCH = ("draw of a view", "evaluation")
WHOLE = "whole step"
QUICK = "tiny+cutmix+ema"


class Stopwatch:
    """Times stages of a step: `with timed("loss"): …` adds the seconds to `timed.spans_s["loss"]`.

    Waits until a GPU is idle, before and after the stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans_s: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._wait()
        began_at = time.perf_counter()
        yield
        self._wait()
        self.spans_s[stage].append(time.perf_counter() - began_at)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def staged_step(run: TrainState, k: int, timed: Stopwatch) -> None:
    """Take optimizer step k (from 0) as a training does, and time each stage.

    Only for one process without gradient accumulation.
    """
    progress = k / run.total_steps
    for group in run.optimizer.param_groups:
        group["lr"] = optim.group_lr(group, run.lr(k))
    with timed("draw of a view"):  # does nothing if the last step had the same view
        run.loader.view(k // run.loader.steps_per_epoch)
    with timed("augment"):
        [(view, rows)] = run.loader.batches(k)
        images, targets = run.loader.augment(view, rows), run.loader.one_hot(rows)
    with timed("mix"):
        images, targets = run.loader.mix(view, rows, images, targets)
        batch = Batch(view, rows, run.loader.resized(view, images), targets)
    with timed("teacher forward"):
        teacher = run.teacher(batch, run.loss.needs(progress))
    with timed("student forward"):
        torch.manual_seed(rng.torch_seed(run.seed, k, 0, 0))
        student = run.model_ddp(batch.images)
    with timed("loss"):
        losses = run.loss_ddp(loop.loss_inputs(batch, student, teacher), progress)
    with timed("backward"):
        run.accelerator.backward(losses[TOTAL])
        run.loss.clear_inactive_grads(progress)
    with timed("optimizer"):
        if run.clip is not None:
            run.accelerator.clip_grad_norm_(run.parameters(), run.clip)
        run.optimizer.step()
        run.optimizer.zero_grad()
    with timed("EMA"):
        if run.ema is not None:
            run.ema.update(run.model, step=k + 2)


def prepared(recipe: Recipe, pair: Pair | None = None) -> TrainState:
    """Build the training state of a recipe at step 0, with a teacher of random weights.

    `pair`: the networks to use instead of the recipe's teacher. The state is never saved.
    """
    images, teacher = load_data_set.load(recipe.data.source, "train"), None
    if recipes.has_teacher(recipe):
        net = pair.teacher() if pair else build_network(recipe, "teacher", images.n_classes)
        teacher = FrozenTeacher(combine_teachers(recipe, [net]))
    unused, role = RunFolder(Path("unused")), pair.role if pair else "student"
    return build.build(recipe, role, unused, images=images, teacher=teacher)


def operations(run: TrainState, most: int) -> list[dict[str, Any]]:
    """Profile a step; return the `most` slowest torch operations, the slowest first.

    Each has `name`, `calls`, `span_s` (seconds) and `share`, its fraction of the step.
    """
    loop.step(run, 0)
    on_gpu = run.accelerator.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        loop.step(run, 1)
    rows = [
        {
            "name": op.key,
            "calls": op.count,
            "span_s": (op.self_device_time_total if on_gpu else op.self_cpu_time_total) / 1e6,
        }
        for op in profiler.key_averages()
    ]
    total_s = sum(row["span_s"] for row in rows)
    slowest = sorted(rows, key=lambda row: -row["span_s"])[:most]
    return [row | {"share": row["span_s"] / total_s} for row in slowest]


def measured(run: TrainState, rounds: int) -> dict[str, float]:
    """Return the median seconds of each stage and of the whole step.

    One step is timed in each of `rounds` epochs.
    """
    timed = Stopwatch(run.accelerator.device)
    for epoch in range(WARMUP_ROUNDS + rounds):
        if epoch == WARMUP_ROUNDS:
            timed.spans_s.clear()
        k = epoch * run.loader.steps_per_epoch
        staged_step(run, k, timed)
        with timed("evaluation"):
            loop.validate(run)
        with timed(WHOLE):
            loop.step(run, k)
    return {stage: median(spans) for stage, spans in timed.spans_s.items()}


def report(
    spec: str, batch: int | None, rounds: int, pair: Pair | None = None, most: int = 0
) -> dict[str, Any]:
    """Measure the stages of one recipe; return the results as values for JSON.

    `spec`: a recipe's name, path or composition a+b; ignored with `pair`. `batch`: batch size; None
    for the recipe's. `most`: number of torch operations to list. Raises UserError if the recipe
    cannot be trained.
    """
    recipe = (
        pair.recipe(load_data_set.SYNTHETIC, batch or BATCH, stored=False)
        if pair
        else resolved(spec, batch, rounds)
    )
    accel = build_accelerator(recipe)
    run = prepared(recipe, pair)
    spans_s = measured(run, rounds)
    whole_s = spans_s.pop(WHOLE)
    teacher, student = pair.title.split(" -> ") if pair else _names(recipe, run)
    return {
        "recipe": spec,
        "student": student,
        "teacher": teacher,
        "batch_size": run.loader.batch_size,
        "steps_per_epoch": run.loader.steps_per_epoch,
        "rounds": rounds,
        "stages": shares(spans_s, run.loader.steps_per_epoch),
        "whole_step_s": whole_s,
        IMAGES_PER_S: run.loader.batch_size / whole_s,
        "operations": operations(run, most) if most else [],
        "environment": environment.describe(accel),
    }


def _names(recipe: Recipe, run: TrainState) -> tuple[str, str]:
    """Return the names of the teacher and of the student."""
    n_classes = run.loader.targets.shape[1]
    student = network_name(recipe, "student", n_classes)
    if not recipes.has_teacher(recipe):
        return "no teacher", student
    return network_name(recipe, "teacher", n_classes), student


def resolved(spec: str, batch: int | None, rounds: int) -> Recipe:
    """Load a recipe with synthetic images, one epoch per round and no gradient accumulation.

    `spec`: its name, path or composition a+b. `batch`: batch size; None for the recipe's.
    """
    overrides = ["data.source=synthetic", "train.accumulate=1", "optim.warmup_epochs=0"]
    overrides.append(f"train.epochs={WARMUP_ROUNDS + rounds}")
    if batch is not None:
        overrides.append(f"train.batch_size={batch}")
    loaded = recipes.load(spec, overrides)
    check_recipe_role.check_student(loaded)
    return recipe_variants.with_teacher(
        loaded.recipe, ()
    )  # adds the default [teacher] if it has none


def shares(spans_s: dict[str, float], steps_per_epoch: int) -> dict[str, dict[str, float]]:
    """Return `span_s`, the seconds per call of each stage, and `share`, its fraction, 0..1, of the
    time of an epoch.
    """
    calls = {stage: 1 / steps_per_epoch if stage in ONCE_PER_EPOCH else 1.0 for stage in spans_s}
    step_s = sum(span * calls[stage] for stage, span in spans_s.items())
    return {
        stage: {"span_s": span, "share": span * calls[stage] / step_s}
        for stage, span in spans_s.items()
    }


def table(content: dict[str, Any]) -> Table:
    """Return a table of the stages, in the order of a step, from the content of `report`."""
    title = "{student} trained with {teacher}, batch size {batch_size}".format_map(content)
    machine = "{device}, {precision}, {threads} thread(s)".format_map(content["environment"])
    whole = "whole step {:.1f} ms, {:,.0f} images/s".format(
        1000 * content["whole_step_s"], content[IMAGES_PER_S]
    )
    result = Table(box=SIMPLE_HEAD, title=f"{title}\n{machine}", caption=whole)
    result.add_column("stage")
    result.add_column("once per")
    for heading in ("ms", "share of a step"):
        result.add_column(heading, justify="right")
    for stage, figures in content["stages"].items():
        period = "epoch" if stage in ONCE_PER_EPOCH else "step"
        result.add_row(stage, period, f"{1000 * figures['span_s']:.2f}", f"{figures['share']:.1%}")
    return result


def operations_table(content: dict[str, Any]) -> Table:
    """Return a table of torch operations, the slowest first, from the content of `report`."""
    result = Table(box=SIMPLE_HEAD)
    result.add_column("operation", overflow="fold")
    for heading in ("calls", "ms", "share of a step"):
        result.add_column(heading, justify="right")
    for row in content["operations"]:
        span, share = f"{1000 * row['span_s']:.2f}", f"{row['share']:.1%}"
        result.add_row(row["name"], str(row["calls"]), span, share)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this module."""
    default = "kd_cutmix" if torch.cuda.is_available() else "kd_cutmix+quickstart"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--recipe", help=f"a name, a path or a+b+c [here: {default}]")
    parser.add_argument("--pair", choices=PAIRS, help="use networks of benchmarks.peers instead")
    parser.add_argument("--batch", type=int, help="images per step [the recipe's]")
    parser.add_argument("--operations", type=int, default=0, metavar="N", help="list the N slowest")
    parser.add_argument("--rounds", type=int, help="epochs to measure, with one step each [10]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}, 2 rounds: some seconds")
    given = parser.parse_args(arguments)
    spec = given.recipe or (QUICK if given.quick else default)
    rounds = (2 if given.quick else 10) if given.rounds is None else given.rounds
    if rounds < 1:
        parser.error(f"--rounds {rounds} measures nothing; type 1 or more")
    try:
        pair = PAIRS[given.pair] if given.pair else None
        content = report(spec, given.batch, rounds, pair, given.operations)
    except UserError as fault:
        parser.error(str(fault))
    if given.json:
        print(json.dumps(content))
    else:
        Console().print(table(content))
        if content["operations"]:
            Console().print(operations_table(content))


if __name__ == "__main__":
    main()
