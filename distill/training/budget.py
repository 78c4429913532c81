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
from distill.teacher.teacher import Drawn, Live, Taught, Teach
from distill.teacher.view_cache import everywhere
from distill.training import build, loop
from distill.training.estimate import LEAST_S, LEAST_STEPS, WARMUP_STEPS, wait
from distill.training.state import Training

MOST_SHARE = 0.05  # of a budget goes into a measurement at most, if LEAST_STEPS allow it
SPARE = 0.03  # of a budget: checkpoints, and steps that take longer than those that were measured
LEAST_RUN_S = 600.0  # a compiler takes a minute or two: shorter runs do not ask it
WORTH = 0.97  # of the plain step: a compiled one that takes longer is not worth its risk


def steps_in(run: Training, minutes: float, began_at: float) -> int:
    """How many optimizer steps, epochs' ends included, a budget allows.

    It began at `began_at` of time.monotonic: measuring is part of it. Views that come again are
    asked once and then read: their steps are shorter by what the teacher takes. Raises UserError
    where not one step fits.
    """
    budget_s, steps_per_epoch = 60 * minutes, run.loader.steps_per_epoch
    with rewound(run):
        asked_s = _mean_step(run, MOST_SHARE * budget_s)
        read_s = asked_s - teacher_seconds(run)
        epoch_s = seconds(run, lambda: _end_an_epoch(run))
    spent_s = time.monotonic() - began_at
    left_s = (1 - SPARE) * budget_s - spent_s
    steps = fitting(left_s, asked_s, epoch_s, steps_per_epoch)
    asked = _asked_steps(run)
    if asked is not None and steps > asked:
        rest_s = left_s - asked * asked_s - asked / steps_per_epoch * epoch_s
        steps = asked + fitting(rest_s, read_s, epoch_s, steps_per_epoch)
    [steps] = broadcast_object_list([steps])
    if steps < 1:
        one_epoch_s = (steps_per_epoch * asked_s + epoch_s + spent_s) / (1 - SPARE)
        raise UserError(
            f"train.minutes = {minutes:g} is too short: here a step takes {asked_s:.2g} s, the end "
            f"of an epoch {epoch_s:.2g} s.\n"
            f"Type --set train.minutes={math.ceil(one_epoch_s / 6) / 10:g}, which holds an epoch."
        )
    return int(steps)


def fitting(left_s: float, step_s: float, epoch_s: float, steps_per_epoch: int) -> int:
    """The largest n with n steps and an end after every epoch, the broken last one too, in time."""
    whole = max(0, math.floor(left_s / (steps_per_epoch * step_s + epoch_s)))
    rest_s = left_s - whole * (steps_per_epoch * step_s + epoch_s) - epoch_s
    return whole * steps_per_epoch + max(0, math.floor(rest_s / step_s))


def _mean_step(run: Training, most_s: float) -> float:
    """Seconds of a step over the whole run: terms come and go, and images grow, each for its share
    of it. The sides rise and an epoch has one, so that what is planned never takes longer.
    """
    shares = [share for share, _ in run.loader.calendar.spans]
    moments = sorted({*run.criterion.moments, *shares, 1.0})
    spans = [(begin, end - begin) for begin, end in pairwise(moments)]
    asked, mean_s = replace(run, teach=_who_answers(run)), 0.0  # at each side the same source
    for begin, share in spans:
        with run.loader.at_side(_side_at(run, begin)):
            mean_s += share * step_seconds(asked, most_s / len(spans), at=begin)
    return mean_s


def _side_at(run: Training, share: float) -> int | None:
    """The side of the images at this share of the training; None for full size."""
    return [side for begin, side in run.loader.calendar.spans if begin <= share][-1]


def teacher_seconds(run: Training) -> float:
    """Of one step, what goes into asking; 0 where nobody is, or nobody will have to be."""
    if run.live is None or _who_answers(run) is run.teach:
        return 0.0
    begins, sides = zip(*run.loader.calendar.spans, strict=True)
    mean_s = 0.0
    for share, side in zip(map(sub, (*begins[1:], 1.0), begins), sides, strict=True):
        with run.loader.at_side(side):
            mean_s += share * _asking_seconds(run, _slowest(run, run.live))
    return len(run.loader.batches(0)) * mean_s


def _asking_seconds(run: Training, teacher: Live) -> float:
    """What a teacher takes for its part of a batch."""
    [(view, rows), *_] = run.loader.batches(0)
    images = run.loader.resized(view, run.loader.augment(view, rows))
    return seconds(run, lambda: teacher.mixed(view, rows, images))


def _slowest(run: Training, live: Live | Drawn) -> Live:
    """The slowest teacher. If one is drawn for each view, planning with it keeps the run within its
    minutes, whichever teachers are drawn.
    """
    if len(live.networks) == 1:
        return live.networks[0]
    for teacher in live.networks:
        _asking_seconds(run, teacher)  # kernels are chosen, memory is taken
    return max(live.networks, key=lambda teacher: _asking_seconds(run, teacher))


def _asked_steps(run: Training) -> int | None:
    """After how many steps every view is known; None where views never come again.

    With images of several sides that many at most: each view is asked again at each.
    """
    calendar = run.loader.calendar
    stored = isinstance(run.teach, Taught) and run.teach.source is not run.live
    if not stored or calendar.views is None:
        return None
    return calendar.views * len(calendar.spans) * run.loader.steps_per_epoch


def _end_an_epoch(run: Training) -> None:
    """All that is done between two epochs: the next view is drawn, measures, weights, a save."""
    run.loader.view.cache_clear()
    run.loader.view(0)
    loop.re_estimate(run)
    loop.agree(run)
    loop.validate(run)
    checkpoint.weights_of(run.to_use)
    if run.accelerator.is_main_process:
        states = {name: part.state_dict() for name, part in run.stateful.items()}
        with tempfile.TemporaryDirectory() as place:
            checkpoint.save(Path(place) / "last", states, {})
    run.accelerator.wait_for_everyone()


def choose_compiled(run: Training, run_s: float | None) -> str:
    """Leave the run compiled or as it is, whichever takes its steps faster; say why.

    `run_s`: seconds that the run may take, if that is known. Networks that the compiler fails on
    stay as they are. Measured on images of the last side, which take the longest.
    """
    with rewound(run), run.loader.at_side(run.loader.calendar.spans[-1][1]):
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


def step_seconds(run: Training, most_s: float, at: float = 0.0) -> float:
    """Seconds of a step, the mean over as many as LEAST_S or, where that is less, `most_s` hold.

    `at`: the share of the training at which the terms are those of these steps.
    """
    take = rehearsal(run, at)
    take(WARMUP_STEPS)
    first_s = seconds(run, lambda: take(LEAST_STEPS)) / LEAST_STEPS
    enough = math.ceil(min(LEAST_S, most_s) / first_s)
    more = int(broadcast_object_list([enough - LEAST_STEPS])[0])
    if more <= 0:
        return first_s
    return seconds(run, lambda: take(more)) / more


def rehearsal(run: Training, at: float = 0.0) -> Callable[[int], None]:
    """A function that takes so many steps, all the same one; `at` as for `step_seconds`."""
    run.net.train()
    rehearsing = replace(run, teach=_who_answers(run))
    rehearsing.total_steps = run.loader.steps_per_epoch  # so that no second view is drawn
    k = math.ceil(at * rehearsing.total_steps) % rehearsing.total_steps

    def take(n: int) -> None:
        for _ in range(n):
            loop.step(rehearsing, k)

    return take


@contextmanager
def rewound(run: Training) -> Iterator[None]:
    """What is trained meanwhile is undone: weights, averages, optimizer, terms, scaler."""
    kept = copy.deepcopy({name: part.state_dict() for name, part in run.stateful.items()})
    accumulated, at_once = run.accelerator.step, run.watch.at_once
    run.watch.at_once = False  # a rehearsal has no step to name
    try:
        yield
    finally:
        run.watch.at_once = at_once
        run.watch.forget()
        run.accelerator.step = accumulated  # a step may have broken off between two parts
        for name, part in run.stateful.items():
            part.load_state_dict(kept[name])
        run.optimizer.zero_grad()


def _who_answers(run: Training) -> Teach:
    """The teacher, unless all its answers are stored: what is half stored would be too fast."""
    if not isinstance(run.teach, Taught) or run.live is None:
        return run.teach
    if everywhere(run.teach.is_complete):
        return run.teach
    return Taught(_slowest(run, run.live))


def seconds(run: Training, work: Callable[[], object]) -> float:
    """Of some work, from an idle device to an idle device."""
    wait(run.accelerator.device)
    began_at = time.monotonic()
    work()
    wait(run.accelerator.device)
    return time.monotonic() - began_at
