"""Measure the time of a step, to convert minutes to steps and to decide on compilation.

A budget in minutes becomes a number of steps, so that the learning-rate schedule ends within the
budget. `train.compile = "auto"` compiles if that saves more time than it costs. All changes that
the timed steps make to the training state are undone.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from operator import sub
from pathlib import Path

from accelerate.utils import broadcast_object_list

from distill.errors import UserError
from distill.models import checkpoint
from distill.teacher.teacher import LiveTeacher, OneTeacherPerView, Teacher
from distill.teacher.view_cache import on_all_processes
from distill.training import build, loop
from distill.training.estimate_duration import LEAST_S, LEAST_STEPS, WARMUP_STEPS, synchronize
from distill.training.train_state import TrainState

MOST_SHARE = 0.05  # largest fraction of a budget to spend on timing; LEAST_STEPS are always timed
SPARE = 0.03  # fraction of a budget reserved for checkpoints and steps slower than the timed ones
LEAST_RUN_S = 600.0  # compiling takes a minute or two: shorter runs are not compiled
WORTH = 0.97  # compile only if a compiled step takes less than this fraction of a plain step


def steps_within(state: TrainState, minutes: float, began_at: float) -> int:
    """Return how many optimizer steps fit into `minutes`, including the work at the end of epochs.

    `began_at`: the time.monotonic() at which the budget began; the time of this measurement is part
    of it. With a cache the teacher computes each view once; steps on a cached view are shorter by
    the teacher's time. Raises UserError if not even one step fits.
    """
    budget_s, steps_per_epoch = 60 * minutes, state.loader.steps_per_epoch
    with restore_afterwards(state):
        step_s = _mean_step(state, MOST_SHARE * budget_s)
        cached_step_s = step_s - teacher_seconds_per_step(state)
        epoch_s = time_work(state, lambda: _run_end_of_epoch(state))
    spent_s = time.monotonic() - began_at
    left_s = (1 - SPARE) * budget_s - spent_s
    steps = most_steps(left_s, step_s, epoch_s, steps_per_epoch)
    uncached = _steps_until_cached(state)
    if uncached is not None and steps > uncached:
        rest_s = left_s - uncached * step_s - uncached / steps_per_epoch * epoch_s
        steps = uncached + most_steps(rest_s, cached_step_s, epoch_s, steps_per_epoch)
    [steps] = broadcast_object_list([steps])
    if steps < 1:
        one_epoch_s = (steps_per_epoch * step_s + epoch_s + spent_s) / (1 - SPARE)
        raise UserError(
            f"train.minutes = {minutes:g} is too short: here a step takes {step_s:.2g} s, the end "
            f"of an epoch {epoch_s:.2g} s.\n"
            f"Type --set train.minutes={math.ceil(one_epoch_s / 6) / 10:g}, enough for one epoch."
        )
    return int(steps)


def most_steps(left_s: float, step_s: float, epoch_s: float, steps_per_epoch: int) -> int:
    """Return the largest number of steps that fit into `left_s` seconds.

    `step_s`: seconds per step. `epoch_s`: seconds of the work at the end of each epoch, which is
    also done after a partial last epoch.
    """
    epochs = max(0, math.floor(left_s / (steps_per_epoch * step_s + epoch_s)))
    rest_s = left_s - epochs * (steps_per_epoch * step_s + epoch_s) - epoch_s
    return epochs * steps_per_epoch + max(0, math.floor(rest_s / step_s))


def _mean_step(state: TrainState, most_s: float) -> float:
    """Return the mean seconds of a step over the whole run, in which the active loss terms and the
    image size change.

    At most `most_s` seconds are spent on timing. The image size never decreases, and changes only
    at the end of an epoch, so after its scheduled time: the run never takes longer than planned.
    """
    shares = [share for share, _ in state.loader.schedule.image_sizes]
    change_points = sorted({*state.loss.change_points, *shares, 1.0})
    spans = [(begin, end - begin) for begin, end in pairwise(change_points)]
    # The choice of the timed teacher is made once and used at all image sizes.
    timed, mean_s = replace(state, teacher=_teacher_to_time(state)), 0.0
    for begin, share in spans:
        with state.loader.at_side(_side_at(state, begin)):
            mean_s += share * step_seconds(timed, most_s / len(spans), at=begin)
    return mean_s


def _side_at(state: TrainState, share: float) -> int | None:
    """Return the image size, in pixels, at a fraction `share` of the training; None for full
    size.
    """
    return [side for begin, side in state.loader.schedule.image_sizes if begin <= share][-1]


def teacher_seconds_per_step(state: TrainState) -> float:
    """Return the mean seconds per step that the teacher takes; 0 without a teacher, or if every
    view is cached.
    """
    if state.live_teacher is None or _teacher_to_time(state) is state.teacher:
        return 0.0
    begins, sides = zip(*state.loader.schedule.image_sizes, strict=True)
    mean_s = 0.0
    for share, side in zip(map(sub, (*begins[1:], 1.0), begins), sides, strict=True):
        with state.loader.at_side(side):
            mean_s += share * _forward_seconds(state, _slowest_teacher(state, state.live_teacher))
    return len(state.loader.batches(0)) * mean_s


def _forward_seconds(state: TrainState, teacher: LiveTeacher) -> float:
    """Return the seconds of a teacher's forward pass on one micro-batch."""
    [(view, rows), *_] = state.loader.batches(0)
    images = state.loader.batch(view, rows).images
    return time_work(state, lambda: teacher.mixed_outputs(view, rows, images))


def _slowest_teacher(state: TrainState, live: LiveTeacher | OneTeacherPerView) -> LiveTeacher:
    """Return the only teacher, or the slowest one if one of several is drawn for each view.

    A plan with the slowest one stays within the budget, whichever teachers are drawn.
    """
    if len(live.networks) == 1:
        return live.networks[0]
    for teacher in live.networks:
        _forward_seconds(state, teacher)  # warm-up: kernels are chosen, memory is allocated
    return max(live.networks, key=lambda teacher: _forward_seconds(state, teacher))


def _steps_until_cached(state: TrainState) -> int | None:
    """Return the number of steps after which every view is cached; None if views never repeat.

    If the image size changes, each view is assumed to be computed at each size: an upper bound.
    """
    schedule = state.loader.schedule
    if not state.teacher.uses_cache or schedule.views is None:
        return None
    return schedule.views * len(schedule.image_sizes) * state.loader.steps_per_epoch


def _run_end_of_epoch(state: TrainState) -> None:
    """Do the work between two epochs, to time it: draw a view, validate, copy weights, save."""
    state.loader.view.cache_clear()
    state.loader.view(0)
    loop.re_estimate_batch_norm(state)
    loop.broadcast_buffers(state)
    loop.validate(state)
    checkpoint.copy_weights(state.final_weights)
    if state.accelerator.is_main_process:
        states = {name: part.state_dict() for name, part in state.stateful.items()}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder) / "last", states, {})
    state.accelerator.wait_for_everyone()


def choose_compilation(state: TrainState, run_s: float | None) -> str:
    """Compile the networks if that makes a step faster; return the decision and its reason.

    `run_s`: seconds that the run may take; None to compute them from the number of steps. If the
    compiler fails, the networks stay uncompiled. Timed at the last image size, which is the
    largest.
    """
    with restore_afterwards(state), state.loader.at_side(state.loader.schedule.image_sizes[-1][1]):
        plain_s = step_seconds(state, LEAST_S)
        [run_s] = broadcast_object_list([run_s or plain_s * state.total_steps])
        if run_s < LEAST_RUN_S:
            return f"not compiled: the run takes less than {LEAST_RUN_S / 60:.0f} minutes"
        began_at, undo = time.monotonic(), build.compile_networks(state)
        try:
            compiled_s = step_seconds(state, LEAST_S)
        except Exception as fault:  # a compiler that is missing or fails raises anything
            undo()
            return f"not compiled: {type(fault).__name__}, {str(fault).partition(chr(10))[0]}"
        spent_s = time.monotonic() - began_at
        [pays] = broadcast_object_list([compiled_s < WORTH * plain_s])
        if not pays:
            undo()
    return (
        f"{'compiled' if pays else 'not compiled'}: a step takes {1000 * compiled_s:.1f} ms "
        f"compiled, {1000 * plain_s:.1f} ms otherwise; compiling and timing took {spent_s:.0f} s"
    )


def step_seconds(state: TrainState, most_s: float, at: float = 0.0) -> float:
    """Return the mean seconds of a step.

    Times steps for `most_s` seconds, at most LEAST_S (5 s), and at least LEAST_STEPS steps. `at`:
    the fraction of the training, 0..1, whose active loss terms the steps compute.
    """
    take_steps = repeated_step(state, at)
    take_steps(WARMUP_STEPS)
    first_s = time_work(state, lambda: take_steps(LEAST_STEPS)) / LEAST_STEPS
    enough = math.ceil(min(LEAST_S, most_s) / first_s)
    more = int(broadcast_object_list([enough - LEAST_STEPS])[0])
    if more <= 0:
        return first_s
    return time_work(state, lambda: take_steps(more)) / more


def repeated_step(state: TrainState, at: float = 0.0) -> Callable[[int], None]:
    """Return a function of n that takes the same training step n times.

    `at`: the fraction of the training, 0..1, whose active loss terms the step computes.
    """
    state.model_ddp.train()
    timed = replace(state, teacher=_teacher_to_time(state))
    # So that no second view is drawn, and no partial batch, which takes less time.
    timed.total_steps = state.loader.full_batches
    k = math.ceil(at * timed.total_steps) % timed.total_steps

    def take_steps(n: int) -> None:
        for _ in range(n):
            loop.step(timed, k)

    return take_steps


@contextmanager
def restore_afterwards(state: TrainState) -> Iterator[None]:
    """Restore the training state at the end of the context: weights, average, optimizer, loss terms
    and loss scaler.
    """
    saved = copy.deepcopy({name: part.state_dict() for name, part in state.stateful.items()})
    accumulated, at_once = state.accelerator.step, state.divergence.at_once
    state.divergence.at_once = False  # a divergence in a timed step is ignored
    try:
        yield
    finally:
        state.divergence.at_once = at_once
        state.divergence.reset()
        state.accelerator.step = accumulated  # a step may have failed between two micro-batches
        for name, part in state.stateful.items():
            part.load_state_dict(saved[name])
        state.optimizer.zero_grad()


def _teacher_to_time(state: TrainState) -> Teacher:
    """Return the teacher to use in timed steps: the cache if it is complete, else a live network.

    With a partial cache, timed steps may read it while later steps must compute the logits: they
    would take longer than timed.
    """
    if state.live_teacher is None or on_all_processes(state.teacher.is_fully_cached):
        return state.teacher
    return Teacher(_slowest_teacher(state, state.live_teacher))


def time_work(state: TrainState, work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes, including its work on the device."""
    synchronize(state.accelerator.device)
    began_at = time.monotonic()
    work()
    synchronize(state.accelerator.device)
    return time.monotonic() - began_at
