"""Several teachers: one drawn for each view, mirror images, weights."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.components.build_network import load_trained
from distill.components.data_pipeline import split_images
from distill.components.read_test_split import identify_test
from distill.data import rng
from distill.data.rng import Stream
from distill.errors import UserError
from distill.evaluation.evaluate_run import evaluate_run
from distill.events import Start, Step
from distill.models import checkpoint
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from distill.teacher import cache_files, selection
from distill.teacher.teacher import FrozenTeacher, LiveTeacher, OneTeacherPerView, Teacher
from distill.training import build, minutes_to_steps, verify_cache
from distill.training import run as runs
from distill.training.run import TrainingRequest, train_and_test
from distill.training.train_state import TrainState
from teachers.ensemble import Ensemble
from tests.make_runs import drawn as drawn_images
from tests.make_runs import prepared, train

pytestmark = pytest.mark.long

NEEDS = frozenset({"teacher"})
ONE, MIRROR, WEIGHTS = "teacher.draw=one", "teacher.mirror=true", "teacher.weights=[1, 3]"
EVERYTHING = (ONE, MIRROR, WEIGHTS, "train.epochs=2", "train.save_steps=3")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def two(teacher: Path, other_teacher: Path) -> str:
    return f"teacher.runs=['{teacher}', '{other_teacher}']"


def networks(*teachers: Path) -> list[nn.Module]:
    return [load_trained(RunFolder(path)) for path in teachers]


def batch(run: TrainState, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """The mixed images of an epoch's first batch, and the teacher's logits of them."""
    [(view, rows)] = run.loader.batches(epoch * run.loader.steps_per_epoch)
    drawn = run.loader.batch(view, rows)
    logits = run.teacher(drawn, NEEDS).logits
    assert logits is not None
    return drawn.images, logits


def drawn(view: int, weights: list[float]) -> int:
    return rng.choice(0, view, Stream.TEACHER, weights)


@torch.no_grad()
def test_weights_and_mirror_are_what_the_student_sees(two, teacher, other_teacher) -> None:
    images, logits = batch(prepared(two, WEIGHTS, MIRROR, "mix.cutmix.prob=0.5"))
    first, second = (
        (net(images).softmax(-1) + net(images.flip(-1)).softmax(-1)) / 2
        for net in networks(teacher, other_teacher)
    )
    assert torch.allclose(logits.exp(), 0.25 * first + 0.75 * second, atol=1e-5)


@torch.no_grad()
def test_mirror_of_one_teacher(teacher) -> None:
    images, logits = batch(prepared(f"teacher.runs=['{teacher}']", MIRROR))
    [net] = networks(teacher)
    both = (net(images).softmax(-1) + net(images.flip(-1)).softmax(-1)) / 2
    assert torch.allclose(logits.exp(), both, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mirror", [False, True])
def test_draw_one_uses_the_drawn_teacher(two, teacher, other_teacher, mirror) -> None:
    run = prepared(two, ONE, WEIGHTS, *[MIRROR] * mirror, "train.epochs=6")
    nets = networks(teacher, other_teacher)
    chosen = [drawn(view, [1, 3]) for view in range(6)]
    assert set(chosen) == {0, 1}
    for epoch, i in enumerate(chosen):
        images, logits = batch(run, epoch)
        expected = (Ensemble([nets[i]], mirror=True) if mirror else nets[i])(images)
        assert torch.allclose(logits, expected, atol=1e-3), epoch


def test_view_that_comes_again_has_same_teacher(two) -> None:
    ready = prepared(two, ONE, "cache.views=2", "train.epochs=4")
    logits = [batch(ready, epoch)[1] for epoch in range(4)]
    assert all(torch.equal(logits[i], logits[i + 2]) for i in range(2))


class Counts(nn.Module):
    """A teacher that counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.bias = 0, nn.Parameter(torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        self.n += 1
        return self.bias.expand(len(images), -1)


def test_draw_one_leaves_the_other_teachers_alone() -> None:
    run = prepared()
    teachers = [Counts(), Counts(), Counts()]
    lives = [LiveTeacher(FrozenTeacher(each), run.accelerator, run.loader) for each in teachers]
    source = Teacher(OneTeacherPerView(lives, [1.0, 1.0, 1.0], seed=0))
    for number in range(12):
        [(view, rows)] = run.loader.batches(number * run.loader.steps_per_epoch)
        before = [each.n for each in teachers]
        source(run.loader.batch(view, rows), NEEDS)
        batches = [each.n - n for each, n in zip(teachers, before, strict=True)]
        assert batches == [int(i == drawn(number, [1.0] * 3)) for i in range(3)]
    assert all(each.n for each in teachers)


def test_pair_is_computed_by_the_drawn_teacher(two) -> None:
    soft = ["loss.kd=false", "loss.soft_mix.weight=0.9", "mix.cutmix.prob=0.5"]
    run = prepared(two, ONE, *soft)
    [(view, rows)] = run.loader.batches(0)
    images = run.loader.augment(view, rows)
    pair = run.teacher(run.loader.batch(view, rows), frozenset({"pair"})).unmixed
    alone = run.live_teacher.networks[drawn(0, [1, 1])].mixed_outputs(view, rows, images).logits
    assert torch.equal(pair.own, alone)


@pytest.fixture(scope="module")
def finished(teacher, other_teacher, tmp_path_factory) -> tuple[RunFolder, Start]:
    """A student of teachers that were drawn, with weights and mirror images."""
    out = tmp_path_factory.mktemp("runs") / "student"
    folder, events = train(out, f"teacher.runs=['{teacher}', '{other_teacher}']", *EVERYTHING)
    return folder, events[0]


def test_run_resumed_within_a_view_draws_same(finished, two, tmp_path) -> None:
    assert drawn(0, [1, 3]) != drawn(1, [1, 3]), "the second view has another teacher"
    resolved = recipes.load("tiny", [two, *EVERYTHING])
    request = TrainingRequest("student", resolved.recipe, "tiny", tmp_path / "cut", resume=True)
    for event in train_and_test(request):
        if isinstance(event, Step) and event.step == 14:
            break
    known = checkpoint.read_progress(RunFolder(tmp_path / "cut").last)
    assert known["step"] == 13, "in the middle of view 1"
    again, _ = train(tmp_path / "cut", two, *EVERYTHING, resume=True)
    assert again.weights("student").read_bytes() == finished[0].weights("student").read_bytes()


def test_evaluate_compares_with_the_mean_of_all(finished) -> None:
    folder, _ = finished
    saved = evaluate_run(folder)
    aside = folder.evaluation.rename(folder.path / "aside.npz")
    computed = evaluate_run(folder)
    aside.rename(folder.evaluation)
    assert computed["teacher_agreement"] == saved["teacher_agreement"] is not None
    assert computed["teacher_kl"] == pytest.approx(saved["teacher_kl"], rel=1e-4)


def test_head_shows_how_often_each_is_drawn(finished, teacher, other_teacher) -> None:
    counts = Counter(drawn(view, [1, 3]) for view in range(2))
    assert (
        f"teacher.draw = one: of 2 views have {teacher} {counts[0]}, {other_teacher} {counts[1]}; "
        "the teacher's accuracy is that of the mean of all"
    ) in finished[1].notes


@pytest.mark.usefixtures("own_cache")
def test_the_accuracy_is_remembered_by_weights_and_mirror(two, other_teacher) -> None:
    """The accuracy in the head, in the report and in result.json: that of the mean of all."""

    def top1(*overrides: str) -> float:
        recipe = recipes.load("tiny", overrides).recipe
        split = split_images(recipe, drawn_images())
        frozen = selection.load_teacher(recipe, drawn_images(), split)
        request = TrainingRequest("student", recipe, "tiny")
        test = identify_test(recipe.data.source, drawn_images())
        ready = runs.PreparedRun(request, split, frozen, prepared(*overrides), test, ())
        return runs._measure_teacher(frozen, ready, None)[0]

    both = top1(two)
    assert top1(two, ONE) == both
    heavy = top1(two, "teacher.weights=[1e-9, 1]")
    assert heavy == top1(f"teacher.runs=['{other_teacher}']") != both
    assert len({both, heavy, top1(two, MIRROR)}) == 3


def compute_all(*overrides: str, epochs: int = 1) -> TrainState:
    """A run whose teachers were asked for every view, and whose logits are cached."""
    ready = prepared("cache={}", f"train.epochs={epochs}", *overrides)
    for step in range(epochs * ready.loader.steps_per_epoch):
        [(view, rows)] = ready.loader.batches(step)
        ready.teacher(ready.loader.batch(view, rows), NEEDS)
    ready.teacher.save()
    return ready


def survey(*overrides: str, epochs: int = 1) -> tuple[int, list[str]]:
    """How many views are cached before a run; in what the nearest others differ."""
    source = prepared("cache={}", f"train.epochs={epochs}", *overrides).teacher.source
    return source.count_views(epochs).found, source.mismatched_keys()


@pytest.mark.usefixtures("own_cache")
def test_views_are_cached_for_the_drawn_teacher(two, teacher, other_teacher) -> None:
    """A student of that teacher alone, and one that draws otherwise, find them."""
    chosen = [drawn(view, [1, 1]) for view in range(4)]
    compute_all(two, ONE, MIRROR, epochs=4)
    assert {entry.teachers: entry.views for entry in cache_files.list_entries()} == {
        (str(path),): [view for view in range(4) if chosen[view] == i]
        for i, path in enumerate((teacher, other_teacher))
    }
    assert set(chosen) == {0, 1}
    for i, path in enumerate((teacher, other_teacher)):
        alone = f"teacher.runs=['{path}']"
        assert survey(alone, MIRROR, epochs=4)[0] == chosen.count(i)
    same = sum(drawn(view, [1, 3]) == chosen[view] for view in range(4))
    assert survey(two, ONE, MIRROR, WEIGHTS, epochs=4)[0] == same < 4
    assert survey(two, ONE, MIRROR, epochs=4)[0] == 4
    assert survey(two, ONE, epochs=4) == (0, ["mirror"])


@pytest.mark.usefixtures("own_cache")
def test_cached_logits_depend_on_mirror_and_weights(two) -> None:
    for overrides in ([], [WEIGHTS], [MIRROR]):
        assert survey(two, *overrides)[0] == 0
        compute_all(two, *overrides)
        assert survey(two, *overrides)[0] == 1
    assert survey(two, "teacher.weights=[2, 2]")[0] == 1
    assert survey(two, "teacher.weights=[2, 6]")[0] == 1
    assert survey(two, "teacher.weights=[3, 1]") == (0, ["weights"])


@pytest.mark.usefixtures("own_cache")
def test_a_plain_mean_finds_that_others_are_mirrored(two) -> None:
    compute_all(two, MIRROR)
    assert survey(two) == (0, ["mirror"])


def test_cache_verify_runs_the_views_teacher(two, own_cache) -> None:
    compute_all(two, ONE, MIRROR, epochs=2)
    first, second = cache_files.list_entries()
    verdict = verify_cache.verify(first)
    assert verdict.is_sound and verdict.n_views_compared == 1, str(verdict)
    files = [next(entry.path.glob("view-*.npz")) for entry in (first, second)]
    with np.load(files[0]) as cached:
        np.savez(files[1], array=cached["array"])
    assert len(verify_cache.verify(second).differing) == 1


@pytest.mark.usefixtures("own_cache")
def test_cached_logits_of_another_teacher_are_not_used(two) -> None:
    """The first rows are asked again, of the teacher that the view draws."""
    assert compute_all(two, ONE).teacher.source.matches_teacher(0)
    [file] = next(entry.path for entry in cache_files.list_entries()).glob("view-*.npz")
    with np.load(file) as cached:
        np.savez(file, array=cached["array"][::-1])
    assert prepared(two, ONE, "cache={}").teacher.source.matches_teacher(0) is False


def test_identity_of_cached_logits_is_unchanged_by_defaults(two) -> None:
    for overrides in ([], ["teacher.weights=[1, 1]", "teacher.mirror=false"]):
        ready = prepared(two, "cache={}", *overrides)
        depends = ready.teacher.source.depends_on(0, ready.loader.pipeline, mixed=True)
        known = {"teacher", "part", "precision", "format", "seed", "pipeline", "data"}
        assert depends.keys() == known


@pytest.mark.parametrize(
    ("n", "overrides", "found"),
    [
        (1, [ONE], ['teacher.draw = "one" draws one of several teachers']),
        (1, [WEIGHTS], ["teacher.weights = [1.0, 3.0] is for several teachers, but 1 was given"]),
        (1, ["teacher.weights=[1]"], ["teacher.weights = [1.0] is for several teachers"]),
        (2, ["teacher.weights=[1, 2, 3]"], ["has 3 weights for 2 teachers", "weights=[1,1]"]),
        (
            1,
            [ONE, WEIGHTS],
            [
                "--teacher A --teacher B, or type --set teacher.draw=all\n",
                "--teacher A --teacher B, or type --set teacher.weights=[]",
            ],
        ),
    ],
)
def test_keys_for_another_number_of_teachers(two, teacher, n, overrides, found) -> None:
    runs = two if n == 2 else f"teacher.runs=['{teacher}']"
    with pytest.raises(UserError) as error:
        prepared(runs, *overrides)
    for words in found:
        assert words in str(error.value)


def test_faulty_keys_and_folders_are_one_message(teacher) -> None:
    with pytest.raises(UserError) as error:
        prepared(f"teacher.runs=['{teacher}', '{teacher}/']", "teacher.weights=[1]")
    assert "was given 2 times" in str(error.value) and "has 1 weight for 2" in str(error.value)


def test_a_teacher_found_alone_is_not_drawn(teacher, tmp_path) -> None:
    with pytest.raises(UserError, match="draws one of several teachers for each view, but 1"):
        train(teacher.parent / "student", ONE)


def test_student_without_teacher_ignores_how_they_combine(tmp_path) -> None:
    alone = ["loss.kd=false", "loss.hard.weight=1"]
    runs = [
        train(tmp_path / str(i), *alone, *more)[0] for i, more in enumerate([[], [ONE, MIRROR]])
    ]
    first, second = (folder.weights("student").read_bytes() for folder in runs)
    assert first == second


def test_minutes_are_planned_by_the_slowest_teacher(two, monkeypatch) -> None:
    run = prepared(two, ONE)
    slow = run.live_teacher.networks[1]
    monkeypatch.setattr(
        minutes_to_steps, "_forward_seconds", lambda _, teacher: 1.0 + (teacher is slow)
    )
    assert minutes_to_steps.teacher_seconds_per_step(run) == 2.0
    assert minutes_to_steps._teacher_to_time(run).source is slow


def test_a_compiled_run_compiles_every_drawn_teacher(two, monkeypatch) -> None:
    run = prepared(two, ONE)
    tapped = [each.extractor for each in run.live_teacher.networks]
    monkeypatch.setattr(torch, "compile", nn.Sequential)
    undo = build.compile_networks(run)
    assert [each.extractor[0] for each in run.live_teacher.networks] == tapped
    undo()
    assert [each.extractor for each in run.live_teacher.networks] == tapped
