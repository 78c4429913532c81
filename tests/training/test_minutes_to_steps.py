"""How many steps fit into minutes, compiled or not; and nothing that was tried is left."""

import math
import re
import time
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import UserError
from distill.events import Epoch
from distill.recipe import recipes
from distill.recipe.schema import OptimizerName
from distill.training import build, loop, minutes_to_steps
from distill.training.minutes_to_steps import most_steps
from tests.make_runs import prepared
from tests.make_runs import train as trained


@given(
    left_s=st.floats(0, 1e4),
    step_s=st.floats(1e-3, 10),
    epoch_s=st.floats(0, 100),
    steps_per_epoch=st.integers(1, 500),
)
def test_what_fits_is_the_most_that_does(left_s, step_s, epoch_s, steps_per_epoch) -> None:
    def takes(n: int) -> float:
        return n * step_s + math.ceil(n / steps_per_epoch) * epoch_s

    n = most_steps(left_s, step_s, epoch_s, steps_per_epoch)
    slack = 1e-9 * (left_s + 1)
    assert n == 0 or takes(n) <= left_s + slack
    assert takes(n + 1) > left_s - slack


def leaves(state: object) -> list[object]:
    """All that a state dict holds, in order."""
    if isinstance(state, dict | list | tuple):
        parts = state.values() if isinstance(state, dict) else state
        return [leaf for part in parts for leaf in leaves(part)]
    return [state]


@pytest.mark.long
@pytest.mark.parametrize("name", OptimizerName.__args__)
def test_a_rehearsal_leaves_nothing_behind(name: str, teacher) -> None:
    """With every optimizer: the steps after it are those of a run that did not rehearse."""
    options = [f"teacher.runs=['{teacher}']", f"optim.name={name}", "ema.decay=0.9"]
    plain, rehearsed = prepared(*options), prepared(*options)
    with minutes_to_steps.restore_afterwards(rehearsed):
        for k in range(2):
            loop.step(rehearsed, k)
    for run in (plain, rehearsed):
        for k in range(2):
            loop.step(run, k)
    for part, ours in rehearsed.stateful.items():
        theirs = plain.stateful[part].state_dict()
        for a, b in zip(leaves(ours.state_dict()), leaves(theirs), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, part


@pytest.mark.long
def test_rehearsal_runs_teacher_unless_logits_are_cached(teacher) -> None:
    overrides = [f"teacher.runs=['{teacher}']", "train.epochs=2", "cache.views=2"]
    run = prepared(*overrides)
    for epoch in range(2):
        assert minutes_to_steps._teacher_to_time(run).source is run.live_teacher
        for k in range(run.loader.steps_per_epoch):
            loop.step(run, k + epoch * run.loader.steps_per_epoch)
    again = prepared(*overrides)
    assert minutes_to_steps._teacher_to_time(again) is again.teacher
    assert minutes_to_steps._teacher_to_time(again).is_fully_cached


class Clock:
    """`time.monotonic` by which each step of a training takes half a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        really = loop.step

        def step(run, k):  # type: ignore[no-untyped-def]
            self.now += 0.5
            return really(run, k)

        monkeypatch.setattr(loop, "step", step)


@pytest.mark.long
def test_minutes_become_steps_that_end_in_time(teacher, tmp_path, monkeypatch) -> None:
    clock = Clock(monkeypatch)
    folder, events = trained(tmp_path / "run", f"teacher.runs=['{teacher}']", "train.minutes=1.0")
    start = events[0]
    # 60 s less 3 %, less the rehearsal's 3 + 3 + 3 steps (a twentieth of the minute is six), of
    # half a second each; validation takes no time by this clock.
    assert start.total_steps == 107
    assert 57.9 < clock.now - 100 <= 58.2
    last = [event for event in events if isinstance(event, Epoch)][-1]
    assert last.step == start.total_steps
    assert last.epoch == start.epochs == -(-107 // start.steps_per_epoch)
    assert any("train.minutes = 1: the training gets 107 steps" in note for note in start.notes)
    assert "minutes = 1.0" in folder.recipe.read_text()


def test_learning_rate_ends_at_zero_with_minutes(teacher) -> None:
    run = prepared(f"teacher.runs=['{teacher}']", "train.minutes=5.0", "optim.warmup_epochs=9.0")
    steps = run.loader.steps_per_epoch * 2 + 3
    recipe = recipes.load("tiny", ["train.minutes=5.0", "optim.warmup_epochs=9.0"]).recipe
    build.set_total_steps(run, recipe, steps)
    assert run.epochs == 3
    peak = recipe.optim.lr
    assert run.lr(steps // 4) == pytest.approx(peak)  # the warm-up takes a quarter at most
    assert run.lr(steps - 1) < 0.01 * peak


def test_learning_rate_ends_at_its_floor_with_minutes(teacher) -> None:
    sets = ["train.minutes=5.0", "optim.min_lr=0.01"]
    run = prepared(f"teacher.runs=['{teacher}']", *sets)
    steps = run.loader.steps_per_epoch * 2 + 3
    build.set_total_steps(run, recipes.load("tiny", sets).recipe, steps)
    assert run.lr(steps) == 0.01
    assert 0.01 < run.lr(steps - 1) < 0.011


@pytest.mark.long
def test_minutes_too_short_for_a_step_are_refused(teacher, monkeypatch) -> None:
    Clock(monkeypatch)
    run = prepared(f"teacher.runs=['{teacher}']")
    with pytest.raises(UserError, match="minutes = 0.05 is too short: here a step takes 0.5 s"):
        minutes_to_steps.steps_within(run, 0.05, time.monotonic())


class Compiler:
    """Replaces torch.compile: a switch, and steps of given lengths."""

    def __init__(self, monkeypatch, plain_s: float, compiled_s: float | Exception) -> None:  # type: ignore[no-untyped-def]
        self.on, seconds = False, (plain_s, compiled_s)

        def compile_networks(run):  # type: ignore[no-untyped-def]
            self.on = True

            def undo() -> None:
                self.on = False

            return undo

        def step_seconds(run, most_s):  # type: ignore[no-untyped-def]
            taken = seconds[self.on]
            if isinstance(taken, Exception):
                raise taken
            return taken

        monkeypatch.setattr(build, "compile_networks", compile_networks)
        monkeypatch.setattr(minutes_to_steps, "step_seconds", step_seconds)


@pytest.mark.parametrize(
    ("plain_s", "compiled_s", "on", "note"),
    [
        (0.1, 0.08, True, "^compiled: a step takes 80.0 ms compiled, 100.0 ms otherwise"),
        (0.1, 0.099, False, "^not compiled: a step takes 99.0 ms compiled, 100.0 ms otherwise"),
        (0.1, RuntimeError("no g++\nat all"), False, "^not compiled: RuntimeError, no g[+][+]$"),
    ],
)
def test_auto_takes_what_is_faster(plain_s, compiled_s, on, note, teacher, monkeypatch) -> None:
    compiler = Compiler(monkeypatch, plain_s, compiled_s)
    run = prepared(f"teacher.runs=['{teacher}']")
    assert re.search(note, minutes_to_steps.choose_compilation(run, 3600.0))
    assert compiler.on is on


def test_auto_does_not_try_for_a_short_run(teacher, monkeypatch) -> None:
    compiler = Compiler(monkeypatch, 0.1, 0.01)
    run = prepared(f"teacher.runs=['{teacher}']")
    assert "the run takes less than 10 minutes" in minutes_to_steps.choose_compilation(run, None)
    assert not compiler.on


def test_counted_steps_are_those_of_the_first_epoch(teacher, monkeypatch) -> None:
    """However many steps a measurement takes, it draws no second view."""
    seen, ticks = [], count()
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks) / 4)
    monkeypatch.setattr(loop, "step", lambda run, k: seen.append(k) or {})
    run = prepared(f"teacher.runs=['{teacher}']")
    minutes_to_steps.step_seconds(run, most_s=60.0)
    assert len(seen) > minutes_to_steps.WARMUP_STEPS + minutes_to_steps.LEAST_STEPS
    assert max(seen) < run.loader.steps_per_epoch


def test_timed_steps_have_full_batches(teacher, monkeypatch) -> None:
    """320 images: 2 batches of 128 and one of 64, which takes half the time."""
    seen: list[int] = []
    monkeypatch.setattr(loop, "step", lambda run, k: seen.append(run.loader.images_in(k)) or {})
    options = ["train.batch_size=128", "train.drop_last=false"]
    run = prepared(f"teacher.runs=['{teacher}']", *options)
    assert run.loader.steps_per_epoch == 3
    for at in (0.0, 0.3, 0.6, 0.9, 0.99):
        minutes_to_steps.repeated_step(run, at)(1)
    assert seen == [128] * 5


SIDES = "train.resolution=[[0.0, 20], [0.5, 26], [0.75, 32]]"
SECONDS = {20: 1.0, 26: 2.0, None: 4.0}


def test_steps_of_every_side_count_for_their_share(teacher, monkeypatch) -> None:
    """Between the moments 0, 0.25, 0.5 and 0.75 a side and the term that begins at 0.25."""
    run = prepared(f"teacher.runs=['{teacher}']", SIDES, "loss.kd.when.begin=0.25")
    schedule = run.loader.schedule

    def seconds(run, most_s, at=0.0):  # type: ignore[no-untyped-def]
        return SECONDS[run.loader.schedule.side(0)] + (10 if at >= 0.25 else 0)

    monkeypatch.setattr(minutes_to_steps, "step_seconds", seconds)
    assert minutes_to_steps._mean_step(run, 60.0) == pytest.approx(
        0.5 * 1 + 0.25 * 2 + 0.25 * 4 + 0.75 * 10
    )
    assert run.loader.schedule == schedule


@pytest.mark.long
def test_cached_views_are_computed_at_every_side(teacher) -> None:
    run = prepared(f"teacher.runs=['{teacher}']", SIDES, "cache.views=2", "train.epochs=12")
    assert minutes_to_steps._steps_until_cached(run) == 3 * 2 * run.loader.steps_per_epoch


def test_the_teacher_is_timed_at_every_side(teacher, monkeypatch) -> None:
    run = prepared(f"teacher.runs=['{teacher}']", SIDES, "cache.views=2", "train.epochs=12")
    monkeypatch.setattr(
        minutes_to_steps, "_forward_seconds", lambda run, live: SECONDS[run.loader.schedule.side(0)]
    )
    assert minutes_to_steps.teacher_seconds_per_step(run) == pytest.approx(
        0.5 * 1 + 0.25 * 2 + 0.25 * 4
    )


def test_the_time_left_counts_pixels(teacher) -> None:
    run = prepared(f"teacher.runs=['{teacher}']", SIDES, "train.epochs=4")
    run.start_clock()
    per_epoch = run.loader.steps_per_epoch
    run.step = per_epoch + 2
    run.began_at -= 100.0
    done = (per_epoch + 2) * 20**2
    left = (per_epoch - 2) * 20**2 + per_epoch * (26**2 + 32**2)
    assert run.remaining_s == pytest.approx(100 * left / done, rel=1e-3)
