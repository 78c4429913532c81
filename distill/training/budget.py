"""Time steps to turn a budget in minutes into steps, and to decide on compilation.

A budget in minutes becomes a number of steps here, so that the learning rate ends at zero in time;
`train.compile = "auto"` is decided here, by what it saves over what it costs. All that is trained
meanwhile is undone.
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
from distill.teacher.teacher import OneTeacherPerView, OnlineTeacher, Teacher
from distill.teacher.view_cache import on_all_processes
from distill.training import build, loop
from distill.training.estimate import LEAST_S, LEAST_STEPS, WARMUP_STEPS, synchronize
from distill.training.state import TrainState

MOST_SHARE = 0.05  # of a budget goes into a measurement at most, if LEAST_STEPS allow it
SPARE = 0.03  # of a budget: checkpoints, and steps that take longer than those that were measured
LEAST_RUN_S = 600.0  # a compiler takes a minute or two: shorter runs do not ask it
WORTH = 0.97  # of the plain step: a compiled one that takes longer is not worth its risk


def steps_within(run: TrainState, minutes: float, began_at: float) -> int:
    """How many optimizer steps, epochs' ends included, a budget allows.

    It began at `began_at` of time.monotonic: measuring is part of it. Views that come again are
    asked once and then read: their steps are shorter by what the teacher takes. Raises UserError
    where not one step fits.
    """
    budget_s, steps_per_epoch = 60 * minutes, run.loader.steps_per_epoch
    with restore_afterwards(run):
        asked_s = _mean_step(run, MOST_SHARE * budget_s)
        read_s = asked_s - teacher_seconds(run)
        epoch_s = time_work(run, lambda: _run_end_of_epoch(run))
    spent_s = time.monotonic() - began_at
    left_s = (1 - SPARE) * budget_s - spent_s
    steps = most_steps(left_s, asked_s, epoch_s, steps_per_epoch)
    asked = _steps_until_cached(run)
    if asked is not None and steps > asked:
        rest_s = left_s - asked * asked_s - asked / steps_per_epoch * epoch_s
        steps = asked + most_steps(rest_s, read_s, epoch_s, steps_per_epoch)
    [steps] = broadcast_object_list([steps])
    if steps < 1:
        one_epoch_s = (steps_per_epoch * asked_s + epoch_s + spent_s) / (1 - SPARE)
        raise UserError(
            f"train.minutes = {minutes:g} is too short: here a step takes {asked_s:.2g} s, the end "
            f"of an epoch {epoch_s:.2g} s.\n"
            f"Type --set train.minutes={math.ceil(one_epoch_s / 6) / 10:g}, which holds an epoch."
        )
    return int(steps)


def most_steps(left_s: float, step_s: float, epoch_s: float, steps_per_epoch: int) -> int:
    """The largest n with n steps and an end after every epoch, the broken last one too, in time."""
    whole = max(0, math.floor(left_s / (steps_per_epoch * step_s + epoch_s)))
    rest_s = left_s - whole * (steps_per_epoch * step_s + epoch_s) - epoch_s
    return whole * steps_per_epoch + max(0, math.floor(rest_s / step_s))


def _mean_step(run: TrainState, most_s: float) -> float:
    """Seconds of a step over the whole run: terms come and go, and images grow, each for its share
    of it. The sides rise and an epoch has one, so that what is planned never takes longer.
    """
    shares = [share for share, _ in run.loader.schedule.spans]
    moments = sorted({*run.loss.change_points, *shares, 1.0})
    spans = [(begin, end - begin) for begin, end in pairwise(moments)]
    asked, mean_s = replace(run, teacher=_teacher_to_time(run)), 0.0  # at each side the same source
    for begin, share in spans:
        with run.loader.at_side(_side_at(run, begin)):
            mean_s += share * step_seconds(asked, most_s / len(spans), at=begin)
    return mean_s


def _side_at(run: TrainState, share: float) -> int | None:
    """The side of the images at this share of the training; None for full size."""
    return [side for begin, side in run.loader.schedule.spans if begin <= share][-1]


def teacher_seconds(run: TrainState) -> float:
    """Of one step, what goes into asking; 0 where nobody is, or nobody will have to be."""
    if run.online_teacher is None or _teacher_to_time(run) is run.teacher:
        return 0.0
    begins, sides = zip(*run.loader.schedule.spans, strict=True)
    mean_s = 0.0
    for share, side in zip(map(sub, (*begins[1:], 1.0), begins), sides, strict=True):
        with run.loader.at_side(side):
            mean_s += share * _forward_seconds(run, _slowest(run, run.online_teacher))
    return len(run.loader.batches(0)) * mean_s


def _forward_seconds(run: TrainState, teacher: OnlineTeacher) -> float:
    """What a teacher takes for its part of a batch."""
    [(view, rows), *_] = run.loader.batches(0)
    images = run.loader.resized(view, run.loader.augment(view, rows))
    return time_work(run, lambda: teacher.mixed(view, rows, images))


def _slowest(run: TrainState, live: OnlineTeacher | OneTeacherPerView) -> OnlineTeacher:
    """The slowest teacher. If one is drawn for each view, planning with it keeps the run within its
    minutes, whichever teachers are drawn.
    """
    if len(live.networks) == 1:
        return live.networks[0]
    for teacher in live.networks:
        _forward_seconds(run, teacher)  # kernels are chosen, memory is taken
    return max(live.networks, key=lambda teacher: _forward_seconds(run, teacher))


def _steps_until_cached(run: TrainState) -> int | None:
    """After how many steps every view is known; None where views never come again.

    With images of several sides that many at most: each view is asked again at each.
    """
    schedule = run.loader.schedule
    if not run.teacher.is_cached or schedule.views is None:
        return None
    return schedule.views * len(schedule.spans) * run.loader.steps_per_epoch


def _run_end_of_epoch(run: TrainState) -> None:
    """All that is done between two epochs: the next view is drawn, measures, weights, a save."""
    run.loader.view.cache_clear()
    run.loader.view(0)
    loop.re_estimate_batch_norm(run)
    loop.broadcast_buffers(run)
    loop.validate(run)
    checkpoint.copy_weights(run.final_weights)
    if run.accelerator.is_main_process:
        states = {name: part.state_dict() for name, part in run.stateful.items()}
        with tempfile.TemporaryDirectory() as place:
            checkpoint.save(Path(place) / "last", states, {})
    run.accelerator.wait_for_everyone()


def choose_compilation(run: TrainState, run_s: float | None) -> str:
    """Leave the run compiled or as it is, whichever takes its steps faster; say why.

    `run_s`: seconds that the run may take, if that is known. Networks that the compiler fails on
    stay as they are. Measured on images of the last side, which take the longest.
    """
    with restore_afterwards(run), run.loader.at_side(run.loader.schedule.spans[-1][1]):
        plain_s = step_seconds(run, LEAST_S)
        [run_s] = broadcast_object_list([run_s or plain_s * run.total_steps])
        if run_s < LEAST_RUN_S:
            return f"not compiled: the run takes less than {LEAST_RUN_S / 60:.0f} minutes"
        began_at, undo = time.monotonic(), build.compile_networks(run)
        try:
            compiled_s = step_seconds(run, LEAST_S)
        except Exception as fault:  # of a compiler that is missing or fails, anything
            undo()
            return f"not compiled: {type(fault).__name__}, {str(fault).partition(chr(10))[0]}"
        spent_s = time.monotonic() - began_at
        [pays] = broadcast_object_list([compiled_s < WORTH * plain_s])
        if not pays:
            undo()
    return (
        f"{'compiled' if pays else 'not compiled'}: compiled a step takes {1000 * compiled_s:.1f} "
        f"ms, else {1000 * plain_s:.1f} ms; it took {spent_s:.0f} s to know"
    )


def step_seconds(run: TrainState, most_s: float, at: float = 0.0) -> float:
    """Seconds of a step, the mean over as many as LEAST_S or, where that is less, `most_s` hold.

    `at`: the share of the training at which the terms are those of these steps.
    """
    take = repeated_step(run, at)
    take(WARMUP_STEPS)
    first_s = time_work(run, lambda: take(LEAST_STEPS)) / LEAST_STEPS
    enough = math.ceil(min(LEAST_S, most_s) / first_s)
    more = int(broadcast_object_list([enough - LEAST_STEPS])[0])
    if more <= 0:
        return first_s
    return time_work(run, lambda: take(more)) / more


def repeated_step(run: TrainState, at: float = 0.0) -> Callable[[int], None]:
    """A function that takes so many steps, all the same one; `at` as for `step_seconds`."""
    run.model_ddp.train()
    rehearsing = replace(run, teacher=_teacher_to_time(run))
    rehearsing.total_steps = run.loader.steps_per_epoch  # so that no second view is drawn
    k = math.ceil(at * rehearsing.total_steps) % rehearsing.total_steps

    def take(n: int) -> None:
        for _ in range(n):
            loop.step(rehearsing, k)

    return take


@contextmanager
def restore_afterwards(run: TrainState) -> Iterator[None]:
    """What is trained meanwhile is undone: weights, averages, optimizer, terms, scaler."""
    kept = copy.deepcopy({name: part.state_dict() for name, part in run.stateful.items()})
    accumulated, at_once = run.accelerator.step, run.divergence.at_once
    run.divergence.at_once = False  # a rehearsal has no step to name
    try:
        yield
    finally:
        run.divergence.at_once = at_once
        run.divergence.reset()
        run.accelerator.step = accumulated  # a step may have broken off between two parts
        for name, part in run.stateful.items():
            part.load_state_dict(kept[name])
        run.optimizer.zero_grad()


def _teacher_to_time(run: TrainState) -> Teacher:
    """The teacher, unless all its answers are stored: what is half stored would be too fast."""
    if run.online_teacher is None or on_all_processes(run.teacher.is_fully_cached):
        return run.teacher
    return Teacher(_slowest(run, run.online_teacher))


def time_work(run: TrainState, work: Callable[[], object]) -> float:
    """Of some work, from an idle device to an idle device."""
    synchronize(run.accelerator.device)
    began_at = time.monotonic()
    work()
    synchronize(run.accelerator.device)
    return time.monotonic() - began_at
