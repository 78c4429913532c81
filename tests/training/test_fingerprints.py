"""What a run is tied to by content: test split, class names, recipe, role; and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.data.sources import load_data_set
from distill.errors import Failure, UserError
from distill.evaluation.evaluate_run import EvalOptions, evaluate_run
from distill.events import Epoch, Event, Start
from distill.models import checkpoint
from distill.recipe import recipes
from distill.runs.compare_two_runs import compare
from distill.runs.run_folder import RunFolder, write_json
from distill.teacher import selection
from distill.teacher.teacher import FrozenTeacher
from distill.training import environment, run
from distill.training.reproduce_step import repeat_step
from tests.make_runs import train

SMALL = (
    "loss.kd=false", "loss.hard.weight=1", "data.train_images=64", "data.holdout=0.2",
    "train.batch_size=32", "train.epochs=2",
)  # fmt: skip


def drawn(root: Path, split: str, seed: int, n: int = 50, classes: str = "ab") -> None:
    """`n` random images a class in class folders."""
    rng = np.random.default_rng(seed)
    for name in classes:
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03}.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A set of two classes."""
    root = tmp_path / "pictures"
    drawn(root, "train", seed=0)
    drawn(root, "test", seed=1, n=10)
    return root


def replace_test(root: Path, seed: int = 2) -> None:
    """Other test images of the same labels, in the place of the former."""
    shutil.rmtree(root / "test")
    drawn(root, "test", seed, n=10)


def of(root: Path, *more: str) -> tuple[str, ...]:
    return (f"data.source={root}", *SMALL, *more)


def begun(out: Path, *overrides: str) -> Iterator[Event]:
    """A run's events, to be consumed as far as a test wants."""
    resolved = recipes.load("tiny", overrides)
    return iter(run.train_and_test(run.TrainingRequest("student", resolved.recipe, "tiny", out)))


def cut(out: Path, *overrides: str) -> RunFolder:
    """A run that was stopped after the checkpoint of its first epoch."""
    events = begun(out, *overrides)
    next(event for event in events if isinstance(event, Epoch))
    next(events)
    events.close()  # type: ignore[attr-defined]
    return RunFolder(out)


@pytest.mark.long
def test_a_result_names_test_split_and_class_names(pictures: Path, tmp_path: Path) -> None:
    folder, _ = train(tmp_path / "run", *of(pictures))
    known, test = folder.result()["data"], load_data_set.load(str(pictures), "test")
    assert known["test_fingerprint"] == test.fingerprint
    assert known["class_names_fingerprint"] == test.class_names_fingerprint
    assert known["test_images"] == 20


def test_class_names_have_a_fingerprint_of_their_own(pictures: Path) -> None:
    before = load_data_set.load(str(pictures), "test")
    for split in ("train", "test"):
        (pictures / split / "b").rename(pictures / split / "c")
    after = load_data_set.load(str(pictures), "test")
    assert before.fingerprint == after.fingerprint
    assert before.class_names_fingerprint != after.class_names_fingerprint


@pytest.mark.long
def test_a_replaced_test_split_is_not_resumed(pictures: Path, tmp_path: Path) -> None:
    folder = cut(tmp_path / "run", *of(pictures))
    replace_test(pictures)
    with pytest.raises(
        UserError, match="cannot be resumed: its test split changed since it started"
    ):
        train(folder.path, *of(pictures), resume=True)


@pytest.mark.long
def test_renamed_classes_are_not_resumed(pictures: Path, tmp_path: Path) -> None:
    folder = cut(tmp_path / "run", *of(pictures))
    for split in ("train", "test"):
        (pictures / split / "b").rename(pictures / split / "c")
    with pytest.raises(UserError, match="cannot be resumed: its class names changed"):
        train(folder.path, *of(pictures), resume=True)


@pytest.mark.long
def test_a_run_from_before_these_fingerprints_is_resumed(pictures: Path, tmp_path: Path) -> None:
    folder = cut(tmp_path / "run", *of(pictures))
    tensors, progress = checkpoint.load(folder.last)
    older = {k: v for k, v in progress.items() if k not in ("test", "class_names", "recipe")}
    checkpoint.save(folder.last, tensors, older)
    resumed, events = train(folder.path, *of(pictures), resume=True)
    assert isinstance(events[0], Start) and resumed.is_finished
    assert "by an earlier version without its test split" in " ".join(events[0].notes)


def rename(root: Path) -> None:
    """Class a becomes the last in the order of the names, so that labels change places."""
    for split in ("train", "test"):
        (root / split / "a").rename(root / split / "z")


def add_class(root: Path) -> None:
    for split in ("train", "test"):
        drawn(root, split, seed=5, n=10, classes="c")


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_test, r"the test split of .* changed while the run trained"),
        (rename, r"the class names of .* changed while the run trained: a, b / b, z"),
        (add_class, r"the class names of .* changed while the run trained: a, b / a, b, c"),
    ],
)
def test_what_changed_while_run_trained_is_not_measured(
    change: Any, message: str, pictures: Path, tmp_path: Path
) -> None:
    events = begun(tmp_path / "run", *of(pictures))
    next(event for event in events if isinstance(event, Epoch))
    change(pictures)
    with pytest.raises(Failure, match=message):
        list(events)
    assert not RunFolder(tmp_path / "run").is_finished


@pytest.mark.long
def test_finished_run_needs_its_own_test_split(pictures: Path, tmp_path: Path) -> None:
    folder, _ = train(tmp_path / "run", *of(pictures))
    replace_test(pictures)
    with pytest.raises(UserError, match="is not the one that run .* was tested on: fingerprint"):
        evaluate_run(folder)
    assert evaluate_run(folder, EvalOptions(data=str(pictures)))["n"] == 20


@pytest.mark.long
def test_the_checkpoint_of_another_recipe_is_not_resumed(pictures: Path, tmp_path: Path) -> None:
    folder = cut(tmp_path / "run", *of(pictures))
    other = cut(tmp_path / "other", *of(pictures, "train.seed=1"))
    for name in ("last", "best"):
        shutil.rmtree(folder.path / name)
        shutil.copytree(other.path / name, folder.path / name)
    with pytest.raises(UserError, match="cannot be resumed: its recipe changed since it started"):
        train(folder.path, *of(pictures), resume=True)


@pytest.mark.long
@pytest.mark.parametrize("part", ["student", "optimizer", "losses"])
def test_a_checkpoint_without_a_part_is_not_resumed(
    part: str, pictures: Path, tmp_path: Path
) -> None:
    folder = cut(tmp_path / "run", *of(pictures))
    tensors, progress = checkpoint.load(folder.last)
    del tensors[part]
    checkpoint.save(folder.last, tensors, progress)
    with pytest.raises(
        UserError, match=f"is not a checkpoint of this run: it has no state of {part}"
    ):
        train(folder.path, *of(pictures), resume=True)


@pytest.mark.long
def test_a_checkpoint_without_a_part_is_not_replayed(pictures: Path, tmp_path: Path) -> None:
    folder = cut(tmp_path / "run", *of(pictures))
    tensors, progress = checkpoint.load(folder.last)
    del tensors["student"]
    checkpoint.save(folder.last, tensors, progress)
    with pytest.raises(
        UserError, match="is not a checkpoint of this run: it has no state of student"
    ):
        repeat_step(folder, progress["step"] + 1)


@pytest.mark.long
def test_a_checkpoint_of_other_shapes_is_not_resumed(pictures: Path, tmp_path: Path) -> None:
    folder = cut(tmp_path / "run", *of(pictures))
    tensors, progress = checkpoint.load(folder.last)
    tensors["student"] = {name: t[:1] for name, t in tensors["student"].items() if t.dim()}
    checkpoint.save(folder.last, tensors, progress)
    with pytest.raises(
        UserError,
        match=r"last does not hold the state of this run: .*\nRestore the checkpoint, or",
    ):
        train(folder.path, *of(pictures), resume=True)


@pytest.mark.long
def test_changed_source_is_noted_with_every_hash(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cut(tmp_path / "run", *of(pictures))
    first = json.loads(folder.environment.read_text())["source"]
    monkeypatch.setattr(environment, "source_hash", lambda: "f" * 64)
    resumed, events = train(folder.path, *of(pictures), resume=True)
    assert isinstance(events[0], Start)
    assert (
        f"source changed during the run (sha256 {first[:12]} when it began, ffffffffffff today)"
        in (" ".join(events[0].notes))
    )
    known = json.loads(resumed.environment.read_text())
    assert known["sources"] == [first, "f" * 64] and known["source"] == "f" * 64


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"source": 1}', '{"sources": "x"}', "[" * 99999]
)
def test_a_damaged_environment_has_no_hashes(text: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(text)
    assert environment.earlier_source_hashes(tmp_path / "environment.json") == []


@pytest.mark.long
@pytest.mark.parametrize("is_finished", [True, False])
def test_student_run_is_not_resumed_as_teacher(
    is_finished: bool, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    folder = train(out, *of(pictures))[0] if is_finished else cut(out, *of(pictures))
    with pytest.raises(
        UserError, match=r"run of a student, and train-teacher trains a teacher.\n.*cli.py distill"
    ):
        train(folder.path, *of(pictures), role="teacher", resume=True)


@pytest.mark.long
def test_predictions_of_another_run_are_not_read(pictures: Path, tmp_path: Path) -> None:
    same = of(pictures, "data.normalize=cifar10")  # both runs have the same accuracy with it
    a, _ = train(tmp_path / "a", *same)
    b, _ = train(tmp_path / "b", *same, "train.seed=1")
    assert compare(a.path, b.path).n == 20
    shutil.copy(b.evaluation, a.evaluation)
    with pytest.raises(UserError, match=r"a/evaluation.npz is not the file that its run wrote"):
        compare(a.path, b.path)
    result = a.result()  # without the keys that an earlier version did not write:
    del result["evaluation"], result["data"]["test_images"]
    write_json(a.result_file, result)
    with pytest.raises(UserError, match="has nll/test = .*, but the predictions in"):
        compare(a.path, b.path)


def test_head_counts_test_images_that_are_trained_on(pictures: Path, tmp_path: Path) -> None:
    for i in range(3):
        name = f"{i:03}.png"
        shutil.copy(pictures / "train" / "a" / name, pictures / "test" / "b" / name)
    events = begun(tmp_path / "run", *of(pictures))
    start = next(events)
    events.close()  # type: ignore[attr-defined]
    assert isinstance(start, Start)
    assert "3 of the 20 test images are in the train split too, pixel by pixel" in " ".join(
        start.notes
    )
    shutil.rmtree(pictures / "test")
    shutil.copytree(pictures / "train", pictures / "test")
    facts = load_data_set.info(str(pictures))
    assert facts["test_images_in_train"] == 100


@pytest.mark.long
def test_recorded_teacher_is_the_loaded_one(
    teacher: Path, other_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is replaced by another run's after its weights were loaded."""
    place = tmp_path / "teacher"
    shutil.copytree(teacher, place)
    load = selection.load_teacher

    def load_and_replace(*arguments: Any) -> FrozenTeacher | None:
        loaded = load(*arguments)
        shutil.rmtree(place)
        shutil.copytree(other_teacher, place)
        return loaded

    monkeypatch.setattr(selection, "load_teacher", load_and_replace)
    folder, _ = train(tmp_path / "run", f"teacher.runs=['{place}']", "train.epochs=1")
    recorded = folder.result()["teacher"]["fingerprint"]
    assert recorded == RunFolder(teacher).result()["weights"]


@pytest.mark.long
def test_processes_compare_images_teacher_and_recipe(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str]] = []
    monkeypatch.setattr(run, "check_same_inputs", lambda _, prints: found.append(prints()))
    for name, seed in (("a", 0), ("b", 1)):
        next(begun(tmp_path / name, *of(pictures, f"train.seed={seed}")))
    replace_test(pictures)
    next(begun(tmp_path / "c", *of(pictures)))
    a, b, c = found
    assert a.keys() == {"data", "teacher", "class names", "recipe", "test split"}
    assert [key for key in a if a[key] != b[key]] == ["recipe"]
    assert [key for key in a if a[key] != c[key]] == ["test split"]
