"""Steps of a recipe, timed in a few seconds on images of noise."""

import math
import time

import pytest

from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.training import loop, measure_speed

TINY = ("data.train_images=320",)


def tiny(*overrides: str) -> Recipe:
    return recipes.load("tiny", [*TINY, *overrides]).recipe


class Clock:
    """`time.monotonic` by which an image of a step takes so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, image_s: float) -> None:
        self.now, self.batches = 100.0, list[int]()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        really = loop.step

        def step(run, k):  # type: ignore[no-untyped-def]
            self.batches.append(run.loader.batch_size)
            self.now += run.loader.batch_size * image_s
            return really(run, k)

        monkeypatch.setattr(loop, "step", step)


IMAGES = measure_speed.random_images(320, 10)


@pytest.mark.long
def test_an_image_takes_what_its_steps_take(monkeypatch) -> None:
    clock = Clock(monkeypatch, 0.02)
    found = measure_speed.measure(tiny(), "student", tiny(), IMAGES, clock.now + 60)
    # 32 images take 0.64 s: the recipe's own batch can be timed, for 2.5 seconds.
    assert clock.batches == [8, 8, 32, 32, 32, 32, 32]
    assert (found.image.mean, found.image.n) == (pytest.approx(0.02), 4)
    assert found.image.high == pytest.approx(1.15 * 0.02)
    assert found.fastest_s == pytest.approx(0.02)


@pytest.mark.long
def test_long_step_is_timed_in_smaller_batch(monkeypatch) -> None:
    clock = Clock(monkeypatch, 0.07)
    recipe = tiny("train.batch_size=64")  # three steps of 64 images would take 13.4 s
    found = measure_speed.measure(recipe, "student", tiny(), IMAGES, clock.now + 60)
    assert set(clock.batches) == {8, 16}  # 16 images take 1.12 s, 32 would take 2.24
    assert found.image.mean == pytest.approx(0.07)
    assert found.image.high == pytest.approx(1.25 * 0.07)  # a smaller batch is a rougher measure


@pytest.mark.long
def test_two_full_batches_are_timed_where_three_fit(monkeypatch) -> None:
    clock = Clock(monkeypatch, 0.07)
    found = measure_speed.measure(tiny(), "student", tiny(), IMAGES, clock.now + 60)
    assert clock.batches == [8, 8, 32, 32, 32]  # 2.24 s each, the first one is not timed
    assert (found.image.mean, found.image.n) == (pytest.approx(0.07), 2)
    assert found.image.low == pytest.approx(0.07 / 1.25)
    assert found.image.high == pytest.approx(1.25 * 0.07)


@pytest.mark.long
def test_an_image_is_cheaper_in_the_full_batch(monkeypatch) -> None:
    """Each step costs 0.8 s besides its images: by the first batch, 96 images would take 14.4 s,
    by the next one, of 16, 9.6 s; they take 7.2 s.
    """
    clock = Clock(monkeypatch, 0.05)
    plain = loop.step

    def step(run, k):  # type: ignore[no-untyped-def]
        clock.now += 0.8
        return plain(run, k)

    monkeypatch.setattr(loop, "step", step)
    recipe = tiny()
    found = measure_speed.measure(
        recipe, "student", tiny(), IMAGES, clock.now + 60, most_step_s=2.5
    )
    assert clock.batches == [8, 8, 16, 16, 32, 32, 32]
    assert found.first_s == pytest.approx(0.05 + 0.8 / 8)
    assert (found.image.mean, found.image.n) == (pytest.approx(0.05 + 0.8 / 32), 2)


@pytest.mark.long
def test_no_step_is_begun_that_ends_too_late(monkeypatch) -> None:
    clock = Clock(monkeypatch, 0.1)
    until = clock.now + 4.5
    found = measure_speed.measure(tiny(), "student", tiny(), IMAGES, until)
    assert clock.now <= until
    assert found.image.n >= 1


@pytest.mark.long
def test_slow_machine_is_recognized_after_one_step(monkeypatch) -> None:
    clock = Clock(monkeypatch, 3.0)
    found = measure_speed.measure(tiny(), "student", tiny(), IMAGES, clock.now + 10)
    assert clock.batches == [8, 8]
    assert (found.image.mean, found.image.n) == (3.0, 1)
    assert found.image.high == 4.5  # one step says little


def test_much_slower_recipe_is_abandoned(monkeypatch) -> None:
    clock = Clock(monkeypatch, 0.02)
    found = measure_speed.measure(tiny(), "student", tiny(), IMAGES, clock.now + 60, rival_s=0.009)
    assert clock.batches == [8, 8]
    assert found.fastest_s == pytest.approx(0.02)


@pytest.mark.long
def test_scheduled_terms_are_timed_by_their_share(monkeypatch) -> None:
    """A step without the teacher's term takes half the time here, for three quarters of the run."""
    clock = Clock(monkeypatch, 0.01)
    with_kd = loop.step

    def step(run, k):  # type: ignore[no-untyped-def]
        losses = with_kd(run, k)
        clock.now += run.loader.batch_size * (0.01 if "kd" in losses else 0)
        return losses

    monkeypatch.setattr(loop, "step", step)
    recipe = tiny("loss.kd.when.begin=0.75")
    found = measure_speed.measure(recipe, "student", tiny(), IMAGES, clock.now + 60)
    assert found.image.mean == pytest.approx(0.75 * 0.01 + 0.25 * 0.02)


@pytest.mark.long
def test_recipe_that_caches_has_teachers_part_measured() -> None:
    recipe = tiny("cache.views=1")
    found = measure_speed.measure(recipe, "student", tiny(), IMAGES, time.monotonic() + 5)
    assert 0 < found.teacher_s < found.image.mean
    plain = measure_speed.measure(tiny(), "student", tiny(), IMAGES, time.monotonic() + 5)
    assert plain.teacher_s == 0


@pytest.mark.long
def test_precisions_may_follow_each_other(fresh_accelerate) -> None:
    for precision in ("fp32", "bf16", "fp32"):
        recipe = tiny(f"train.precision={precision}", "loss.kd=false", "loss.hard.weight=1")
        found = measure_speed.measure(recipe, "student", None, IMAGES, time.monotonic() + 1)
        assert math.isfinite(found.image.mean) and found.image.mean > 0


@pytest.mark.long
def test_nothing_is_written(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    measure_speed.measure(tiny("cache.views=1"), "student", tiny(), IMAGES, time.monotonic() + 1)
    assert list(tmp_path.rglob("*")) == []
