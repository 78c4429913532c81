"""How long a run takes, from its first steps, and how sure that is."""

import time
from itertools import cycle, pairwise

import pytest
import torch

from distill.events import Epoch, Estimate, Step
from distill.training import loop
from distill.training.estimate_duration import FirstSteps, time_range
from tests.make_runs import train as trained

CPU = torch.device("cpu")


def test_steady_steps_are_known_to_15_percent() -> None:
    found = time_range([2.0, 2.0, 2.0])
    assert (found.mean, found.low, found.high, found.n) == (2.0, 1.7, 2.3, 3)


def test_unsteady_steps_widen_the_range() -> None:
    found = time_range([1.0, 2.0, 3.0])  # standard deviation 1: two of them are the mean
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 1.0, 4.0))


def test_fewer_than_three_steps_are_doubtful() -> None:
    assert time_range([2.0]).high == time_range([2.0, 2.0]).high == 3.0


class Clock:
    """`time.monotonic` that only `tick` moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds


def test_long_steps_are_timed_one_by_one(monkeypatch) -> None:
    clock, first = Clock(monkeypatch), FirstSteps()
    first.restart()
    seen = []
    for seconds in (9.0, 9.0, 9.0, 2.0, 3.0, 4.0, 5.0):  # three of warm-up
        clock.tick(seconds)
        seen.append(first.count_step(CPU))
    assert seen == [False] * 5 + [True, False]  # once, when three blocks have lasted five seconds
    assert (first.block_means, first.n_timed) == ([2.0, 3.0, 4.0], 3)


def test_short_steps_are_timed_in_blocks_of_second(monkeypatch) -> None:
    clock, first, waits = Clock(monkeypatch), FirstSteps(), []
    monkeypatch.setattr(
        "distill.training.estimate_duration.synchronize", lambda device: waits.append(clock.now)
    )
    first.restart()
    steps = 0
    while not first.is_done:
        clock.tick(0.125)
        steps += 1
        first.count_step(CPU)
    assert first.block_means == [0.125] * 5
    assert steps == 3 + first.n_timed == 3 + 40
    assert all(later - earlier == 1.0 for earlier, later in pairwise(waits))


def test_time_between_epochs_is_no_step(monkeypatch) -> None:
    clock, first = Clock(monkeypatch), FirstSteps(n_seen=3)
    first.restart()
    for _ in range(3):
        clock.tick(2.0)
        first.count_step(CPU)
        clock.tick(60.0)  # validation
        first.restart()
    assert first.block_means == [2.0] * 3


def slow_steps(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> Clock:
    """Steps of a training take these times by the clock, in turn."""
    clock, really, times = Clock(monkeypatch), loop.step, cycle(seconds)

    def step(run, k):  # type: ignore[no-untyped-def]
        clock.tick(next(times))
        return really(run, k)

    monkeypatch.setattr(loop, "step", step)
    return clock


@pytest.mark.long
def test_run_estimates_its_time_early(teacher, tmp_path, monkeypatch) -> None:
    clock = slow_steps(monkeypatch, 10.0)
    began_at = clock.now
    _, events = trained(tmp_path / "run", f"teacher.runs=['{teacher}']", "train.epochs=2")
    (estimate,) = [event for event in events if isinstance(event, Estimate)]
    n_steps = [event for event in events if isinstance(event, Step)][-1].step
    assert (estimate.step, estimate.epoch, estimate.steps) == (6, 0, 3)
    # By this clock validation takes no time; it is expected to take a third of its steps' time.
    taken_s = clock.now - began_at
    assert taken_s == 10 * n_steps
    start = events[0]
    validation_s = 2 * 10 / 3 * start.val_images / start.batch_size
    assert estimate.total_s == pytest.approx(taken_s + validation_s)
    left_s = estimate.total_s - 60
    assert estimate.low_s == pytest.approx(60 + 0.85 * left_s)
    assert estimate.high_s == pytest.approx(60 + 1.15 * left_s)
    assert events.index(estimate) < [isinstance(event, Epoch) for event in events].index(True)


@pytest.mark.long
def test_short_run_has_no_estimate(teacher, tmp_path, monkeypatch) -> None:
    slow_steps(monkeypatch, 2.0)  # ten of them
    _, events = trained(tmp_path / "run", f"teacher.runs=['{teacher}']", "data.holdout=0.01")
    assert [event for event in events if isinstance(event, Estimate)] == []


@pytest.mark.long
def test_terms_that_come_and_go_widen_the_range(teacher, tmp_path, monkeypatch) -> None:
    slow_steps(monkeypatch, 10.0)
    sets = (f"teacher.runs=['{teacher}']", "train.epochs=2", "loss.kd.when.begin=0.5")
    _, events = trained(tmp_path / "run", *sets)
    (estimate,) = [event for event in events if isinstance(event, Estimate)]
    assert estimate.high_s - 60 == pytest.approx(1.5 * (estimate.total_s - 60))
