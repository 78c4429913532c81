"""Teacher logits cached by view: computed, read again, or missing."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from distill.data.augment.affine import Affine, Rotate, Translate
from distill.data.augment.augment_schedule import AugmentSchedule, Pipeline
from distill.data.augment.auto_augment import RandAugment, TrivialAugment
from distill.data.augment.color import ColourJitter
from distill.data.augment.crop_flip import Crop, Flip
from distill.data.augment.erase import Cutout, Erase
from distill.data.augment.mixup_cutmix import Cutmix
from distill.data.image_set import ImageSet
from distill.data.loader import Loader, Shard
from distill.events import Step
from distill.models.features import ModelOutput
from distill.teacher import view_cache
from distill.teacher.teacher import Teacher
from distill.teacher.view_cache import CachedTeacher
from tests.make_runs import train

N, BATCH, C = 50, 8, 10
MIXED = Pipeline(Crop(4), Flip(), cutmix=Cutmix(prob=0.5))
KEY = {"teacher": "a", "part": "b"}


class CountingSource:
    """Logits are the pixels' means; counts its calls."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.queries = loader, 0

    def mixed_outputs(self, view, rows, images) -> ModelOutput:  # type: ignore[no-untyped-def]
        self.queries += 1
        return ModelOutput(images.mean((2, 3)) @ torch.linspace(-9, 9, 3 * C).reshape(3, C), {})

    def unmixed_logits(self, view, rows):  # type: ignore[no-untyped-def]
        images = self.loader.resized(view, self.loader.augment(view, rows))
        return self.mixed_outputs(view, rows, images).logits


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def loader(**changes: object) -> Loader:
    pixels = np.random.default_rng(0).integers(0, 256, (N, 3, 32, 32), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(N) % C, tuple("abcdefghij"))
    settings = {
        "batch_size": BATCH,
        "seed": 5,
        "pipeline": MIXED,
        "device": torch.device("cpu"),
        "shard": Shard(),
    }
    return Loader(images, **(settings | changes))  # type: ignore[arg-type]


def epoch(
    teacher: CountingSource, number: int = 0, identity: dict[str, str] = KEY, needs: str = "teacher"
) -> list[torch.Tensor]:
    """The logits of an epoch, in order, through a cache of its own."""
    return through(CachedTeacher(teacher, teacher.loader, Accelerator(), identity), number, needs)


def through(store: CachedTeacher, number: int, needs: str = "teacher") -> list[torch.Tensor]:
    ours, outputs = store.loader, []
    for step in range(number * ours.steps_per_epoch, (number + 1) * ours.steps_per_epoch):
        for view, rows in ours.batches(step):
            outputs.append(Teacher(store)(ours.batch(view, rows), frozenset({needs})))
    if needs == "pair":
        return [half for output in outputs for half in (output.unmixed.own, output.unmixed.partner)]
    return [output.logits for output in outputs]


def live(teacher: CountingSource, number: int = 0, needs: str = "teacher") -> list[torch.Tensor]:
    return through(teacher, number, needs)  # type: ignore[arg-type]


def test_second_student_reads_the_same_cached_logits() -> None:
    first, second = CountingSource(loader()), CountingSource(loader())
    heard = epoch(first)
    assert first.queries == N // BATCH
    again = epoch(second)
    assert second.queries == 0
    assert all(torch.equal(a, b) for a, b in zip(heard, again, strict=True))


def test_view_just_written_is_not_computed_again() -> None:
    teacher = CountingSource(loader())
    store = CachedTeacher(teacher, teacher.loader, Accelerator(), KEY)
    heard, again = through(store, 0), through(store, 0)
    assert teacher.queries == N // BATCH
    assert all(torch.equal(a, b) for a, b in zip(heard, again, strict=True))


def test_view_missing_elsewhere_is_computed_again(monkeypatch) -> None:
    """Machines may have separate cache folders: no process reads a view that another lacks."""
    epoch(CountingSource(loader()))
    monkeypatch.setattr(view_cache, "gather_object", lambda here: [*here, False])
    teacher = CountingSource(loader())
    epoch(teacher)
    assert teacher.queries == N // BATCH


def test_cached_logits_are_float16_of_live_ones() -> None:
    cached, computed = epoch(CountingSource(loader())), live(CountingSource(loader()))
    for a, b in zip(cached, computed, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.half().float())


def test_repeated_view_is_not_computed_again() -> None:
    teacher = CountingSource(loader(schedule=AugmentSchedule(views=2)))
    store = CachedTeacher(teacher, teacher.loader, Accelerator(), KEY)
    heard = [through(store, number) for number in range(4)]
    assert teacher.queries == 2 * (N // BATCH)
    for now, later in ((0, 2), (1, 3)):
        assert all(torch.equal(a, b) for a, b in zip(heard[now], heard[later], strict=True))
    assert not torch.equal(heard[0][0], heard[1][0])


def test_pairs_are_cached_before_they_are_mixed() -> None:
    first, second = CountingSource(loader()), CountingSource(loader())
    heard = epoch(first, needs="pair")
    other_mix = replace(MIXED, cutmix=Cutmix(prob=0.1))
    again = epoch(second, needs="pair")
    assert second.queries == 0
    assert all(torch.equal(a, b) for a, b in zip(heard, again, strict=True))
    computed = live(CountingSource(loader()), needs="pair")
    assert all(torch.equal(a, b.half().float()) for a, b in zip(heard, computed, strict=True))
    third = CountingSource(loader(pipeline=other_mix))
    epoch(third, needs="pair")
    assert third.queries == 0  # how they will be mixed changes nothing about the parts


@pytest.mark.parametrize(
    ("changes", "identity", "number"),
    [
        ({"seed": 6}, KEY, 0),
        ({"pipeline": replace(MIXED, cutmix=Cutmix(prob=0.6))}, KEY, 0),
        ({"pipeline": replace(MIXED, flip=None)}, KEY, 0),
        ({"pipeline": replace(MIXED, operations=(TrivialAugment(),))}, KEY, 0),
        ({}, KEY | {"teacher": "other"}, 0),
        ({}, KEY | {"part": "other"}, 0),
        ({}, KEY, 1),
    ],
)
def test_what_differs_in_anything_finds_nothing(changes, identity, number) -> None:
    epoch(CountingSource(loader()))
    teacher = CountingSource(loader(**changes))
    epoch(teacher, number, identity)
    assert teacher.queries == N // BATCH


def test_cache_identity_has_the_place_of_trivial_augment() -> None:
    """Logits cached for the pixels of an earlier version are not read."""
    pipelines = set()
    for first in (True, False):
        here = loader(pipeline=Pipeline(Crop(4), operations=(TrivialAugment("wide", first),)))
        store = CachedTeacher(CountingSource(here), here, Accelerator(), KEY)
        pipelines |= {
            store.depends_on(0, here.pipeline, mixed=mixed)["pipeline"] for mixed in (True, False)
        }
    assert len(pipelines) == 2
    assert not any("TrivialAugment(space='wide')" in pipeline for pipeline in pipelines)


def test_cache_identity_of_other_pipelines_is_unchanged() -> None:
    """Logits that are cached for them are still found."""
    every = (Translate(), Affine(), Rotate(), RandAugment(), ColourJitter(), Cutout(), Erase())
    assert repr(replace(MIXED, operations=every)) == (
        "Pipeline(crop=Crop(padding=4), flip=Flip(prob=0.5, alternate=False), operations=("
        "Translate(pixels=4), "
        "Affine(degrees=0.0, translate=0.0, scale=(1.0, 1.0), shear=0.0), "
        "Rotate(degrees=15.0), "
        "RandAugment(ops=3, magnitude=15, space='standard'), "
        "ColourJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0), "
        "Cutout(size=16, prob=1.0), "
        "Erase(prob=0.25, area=(0.02, 0.33), ratio=(0.3, 3.3))), "
        "mixup=None, cutmix=Cutmix(prob=0.5, alpha=1.0), ricap=None)"
    )


RISING = AugmentSchedule(views=1, sides=((0.0, 20), (0.5, None)), epochs=2)


def test_cache_identity_has_the_side_of_the_images() -> None:
    assert repr(replace(MIXED, side=20)) == repr(MIXED)[:-1] + ", side=20)"


@pytest.mark.parametrize("needs", ["teacher", "pair"])
def test_a_view_at_another_side_is_another_view(needs: str) -> None:
    first = CountingSource(loader(schedule=RISING))
    store = CachedTeacher(first, first.loader, Accelerator(), KEY)
    small, full = (through(store, number, needs) for number in (0, 1))
    queries, a_view = first.queries, (N // BATCH) * (2 if needs == "pair" else 1)
    assert queries == 2 * a_view
    assert not torch.equal(small[0], full[0])
    if needs == "teacher":
        assert store.count_views(2) == (2, 2, 0)
    second = CountingSource(loader(schedule=RISING))
    again = CachedTeacher(second, second.loader, Accelerator(), KEY)
    for number, heard in ((0, small), (1, full)):
        for a, b in zip(through(again, number, needs), heard, strict=True):
            assert torch.equal(a, b)
    assert second.queries == 0
    plain = CountingSource(loader(schedule=AugmentSchedule(views=1)))
    for a, b in zip(epoch(plain, needs=needs), full, strict=True):
        assert torch.equal(a, b)
    assert plain.queries == 0, "at full size it is the view of a run without sides"


def test_view_is_complete_with_every_side() -> None:
    teacher = CountingSource(loader(schedule=RISING))
    store = CachedTeacher(teacher, teacher.loader, Accelerator(), KEY)
    through(store, 0)
    assert not store.is_fully_cached
    through(store, 1)
    assert store.is_fully_cached
    assert teacher.loader.schedule == RISING


def test_another_batch_size_computes_only_missing_logits() -> None:
    """The last partial batch is dropped, so that other batches leave out other samples."""
    epoch(CountingSource(loader()))  # 48 of 50
    ten = CountingSource(loader(batch_size=10))
    epoch(ten)  # all 50: two are missing
    assert ten.queries == 5
    again = CountingSource(loader(batch_size=10))
    epoch(again)
    assert again.queries == 0


def test_partial_batch_adds_its_logits_to_cache(own_cache: Path) -> None:
    """The cache is by view and sample: `drop_last` is no part of its key."""
    epoch(CountingSource(loader()))  # 48 of 50
    every = CountingSource(loader(drop_last=False))
    epoch(every)
    assert every.queries == N // BATCH + 1
    (file,) = own_cache.rglob("view-*")
    assert not np.isnan(np.load(file)["array"]).any()
    for other in (loader(), loader(drop_last=False)):
        again = CountingSource(other)
        epoch(again)
        assert again.queries == 0


def test_run_ending_within_view_leaves_no_half(own_cache: Path) -> None:
    teacher = CountingSource(loader())
    store = CachedTeacher(teacher, teacher.loader, Accelerator(), KEY)
    ((view, rows),) = teacher.loader.batches(0)
    store.mixed_outputs(view, rows, teacher.loader.augment(view, rows))
    assert not list(own_cache.rglob("view-*"))


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_file_is_computed_again(own_cache: Path, damage: bytes | None) -> None:
    epoch(CountingSource(loader()))
    (file,) = own_cache.rglob("view-*")
    whole = file.read_bytes()
    flipped = whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]
    file.write_bytes(flipped if damage is None else damage)
    teacher = CountingSource(loader())
    epoch(teacher)
    assert teacher.queries == N // BATCH


@pytest.mark.long
def test_weights_do_not_depend_on_the_cache(teacher, tmp_path, own_cache) -> None:
    overrides = [f"teacher.runs=['{teacher}']", "train.epochs=2", "mix.cutmix.prob=0.5"]
    own_cache.mkdir()
    runs = []
    for i, more in enumerate([["cache.views=1"], ["cache.views=1"], []]):
        own_cache.chmod(0o700 if i == 1 else 0o777)
        runs.append(train(tmp_path / str(i), *overrides, *more))
    exposed = [
        [note for note in events[0].notes if note.startswith("other users may change the")]
        for _, events in runs
    ]
    assert exposed[0] == [
        f"other users may change the cached logits in {own_cache}: every user may write in it; use "
        "it only if you trust them, or set UNDERSTUDY_CACHE to a folder of your own"
    ]
    assert exposed[1] == exposed[2] == []
    assert re.search(
        r"0 of 1 view of the teacher's logits is cached in \S+/targets, [0-9.]+ kB for all of them",
        "\n".join(runs[0][1][0].notes),
    )
    assert not any("cached in" in note and "of 1 view" in note for note in runs[2][1][0].notes)
    first, second, fresh = (folder.weights("student").read_bytes() for folder, _ in runs)
    assert first == second != fresh  # without views = 1 each epoch has a view of its own
    losses = [[e.metrics["loss/kd"] for e in events if isinstance(e, Step)] for _, events in runs]
    half = len(losses[0]) // 2
    assert losses[0][:half] == pytest.approx(losses[2][:half], rel=1e-2)
