"""Runs on images that grow while they train."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.errors import UnsuitableRecipe
from distill.evaluation import predict_split as prediction
from distill.events import TOTAL, Step, loss_name
from distill.recipe import recipes
from distill.runs.journal import read
from distill.runs.run_folder import RunFolder
from distill.teacher import cache_files
from distill.teacher.teacher import FrozenTeacher
from distill.training import build, loop, run, start_notes, verify_cache
from tests.make_runs import EFFICIENT, prepared
from tests.make_runs import train as trained
from tests.training.test_processes import losses, run_ranks
from tests.training.test_run import digest, same

GROWING = "train.resolution=[[0.0, 20], [0.5, 32]]"
MAPS = [
    "fitnet", "at", "sp", "nst", "ab", "ft", "pkt", "rkd", "cc", "vid", "crd", "reviewkd", "simkd",
]  # fmt: skip


def sides_of(net: nn.Module) -> list[int]:
    """The sides of the images that a network gets from now on."""
    seen: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    return seen


@pytest.mark.long
def test_small_images_train_and_full_ones_validate(teacher) -> None:
    options = [f"teacher.runs=['{teacher}']", "train.epochs=2", "mix.cutmix.prob=0.5"]
    made = prepared(*options, GROWING)
    assert made.live_teacher is not None
    inputs: list[list[Tensor]] = [[], []]
    for net, seen in zip((made.model, made.live_teacher.extractor.net), inputs, strict=True):
        net.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
    for k in (0, made.loader.steps_per_epoch):
        loop.step(made, k)
    sides = [images.shape[-1] for images in inputs[0]]
    assert sides == [20, 32]
    assert all(torch.equal(a, b) for a, b in zip(*inputs, strict=True))
    loop.validate(made)
    assert {images.shape[-1] for images in inputs[0][2:]} == {32}


@pytest.mark.long
def test_resumed_run_is_same_bit_for_bit(tmp_path: Path) -> None:
    options = [*EFFICIENT, GROWING]
    whole, events = trained(tmp_path / "whole", *options)
    note = (
        "train.resolution: epoch 1 at 20 pixels, epoch 2 at 32 pixels; validation and test at full "
        "size, 32 pixels"
    )
    assert note in events[0].notes  # type: ignore[union-attr]
    recipe = recipes.load("tiny", options).recipe
    begun = run.train_and_test(run.TrainingRequest("student", recipe, "tiny", tmp_path / "cut"))
    for event in begun:
        if isinstance(event, Step) and event.step == 13:
            break  # killed in the middle of epoch 2
    begun.close()
    resumed, later = trained(tmp_path / "cut", *options, resume=True)
    assert later[0].first_step == 10  # type: ignore[union-attr]
    assert same(whole, resumed)
    assert digest(whole.weights("student")) == digest(resumed.weights("student"))


def test_sides_that_no_epoch_has_are_named() -> None:
    made = prepared(*EFFICIENT, "train.resolution=[[0, 20], [0.5, 24], [0.75, 32]]")
    assert list(start_notes._resolution_notes(made)) == [
        "train.resolution: epoch 1 at 20 pixels, epoch 2 at 24 pixels; validation and test at full "
        "size, 32 pixels",
        "train.resolution: no epoch of 2 trains at 32 pixels; a size is used from the first "
        "epoch at or after its fraction",
    ]
    assert list(start_notes._resolution_notes(prepared(*EFFICIENT))) == []


def test_with_minutes_shares_are_of_epochs_that_fit() -> None:
    made = prepared(*EFFICIENT)
    sets = ["train.minutes=5.0", GROWING]
    per_epoch = made.loader.steps_per_epoch
    build.set_total_steps(made, recipes.load("tiny", sets).recipe, 4 * per_epoch + 1)  # five epochs
    sides = [made.loader.view(epoch).pipeline.side for epoch in range(5)]
    assert sides == [20, 20, 20, None, None]


@pytest.mark.long
@pytest.mark.parametrize("term", MAPS)
def test_terms_that_read_maps_work_at_every_side(term: str, teacher) -> None:
    options = [
        f"teacher.runs=['{teacher}']",
        "loss.kd=false",
        f"loss.{term}.weight=1",
        "student.stages=3",
        "train.epochs=2",
    ]
    if term == "simkd":
        options.append("student.projector_width=64")
    made = prepared(*options, GROWING)
    seen = sides_of(made.model)
    losses = [loop.step(made, k)[term] for k in (0, 1, made.loader.steps_per_epoch)]
    assert seen == [20, 20, 32]
    assert all(torch.isfinite(loss) for loss in losses)
    assert losses[0] != losses[1], "the student must have moved"


class Fixed(nn.Module):
    """A network for images of 32x32 pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits


def test_teacher_that_does_not_take_side_is_refused(teacher: Path) -> None:
    options = [f"teacher.runs=['{teacher}']", "train.epochs=2"]
    prepared(*options, "train.resolution=[[0, 32]]", teacher=FrozenTeacher(Fixed()))
    with pytest.raises(
        UnsuitableRecipe,
        match=r"train.resolution has size 20, and the teacher does not take images of 20x20 pixels"
        r": RuntimeError: .*\nGive larger sizes, or type --set train.resolution=\[\[0.0,32\]\]",
    ):
        prepared(*options, GROWING, teacher=FrozenTeacher(Fixed()))


@pytest.mark.long
def test_cached_logits_of_small_images_are_verified(teacher, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    options = [f"teacher.runs=['{teacher}']", "train.epochs=2", "cache.views=1", GROWING]
    _, events = trained(tmp_path / "run", *options)
    assert any("0 of 2 views" in note for note in events[0].notes)  # type: ignore[union-attr]
    verdicts = [verify_cache.verify(entry) for entry in cache_files.list_entries()]
    assert len(verdicts) == 2
    assert all(verdict.is_sound and verdict.n_compared for verdict in verdicts), verdicts
    _, events = trained(tmp_path / "again", *options, "train.seed=1")
    assert any("2 of 2 views" in note for note in events[0].notes)  # type: ignore[union-attr]


@pytest.mark.multi
def test_two_processes_have_same_sides_and_stem(tmp_path: Path) -> None:
    """Each process normalises its half of a batch alone, so that the losses differ a little."""
    options = [*EFFICIENT, GROWING]
    one, events = trained(tmp_path / "one", *options)
    sets = [word for value in options for word in ("--set", value)]
    command = ["cli.py", "distill", "--recipe", "tiny", "--out", tmp_path / "two", *sets]
    run_ranks(2, *command)
    two = RunFolder(tmp_path / "two")
    alone = [each.metrics[loss_name(TOTAL)] for each in events if isinstance(each, Step)]
    assert losses(two.path)[:5] == pytest.approx(alone[:5], rel=0.1)
    assert read(two.journal)[0]["notes"][0] == events[0].notes[0]  # type: ignore[union-attr]
    assert two.result()["processes"] == 2 and one.is_finished
    stems = [load_file(run.weights("student"))["stem.0.weight"] for run in (one, two)]
    assert torch.equal(*stems), "whitened by the same images"


@pytest.mark.long
def test_the_test_split_is_measured_at_full_size(tmp_path, monkeypatch) -> None:
    seen: set[int] = set()
    predict = prediction.predict

    def watched(forward, images, *rest, **named):  # type: ignore[no-untyped-def]
        seen.add(images.shape[-1])
        return predict(forward, images, *rest, **named)

    monkeypatch.setattr(prediction, "predict", watched)
    folder, _ = trained(tmp_path / "run", *EFFICIENT, "train.resolution=[[0, 20]]")
    assert seen == {32}
    assert folder.is_finished
