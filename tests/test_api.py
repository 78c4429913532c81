"""The Python interface: what it returns, what it refuses, and the example of docs/python.md."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import distill
from distill import evaluate, load_run, predict, train_student, train_teacher
from distill.errors import UserError
from distill.evaluation.evaluate_run import evaluate_run
from distill.events import End, Epoch, Event, Start
from distill.export import predictions_csv
from distill.runs import journal
from distill.runs.run_folder import RunFolder
from tests.make_runs import Events

REPO = Path(__file__).parents[1]
PAGE = REPO / "docs" / "python.md"
SMALL = {"data.train_images": 64, "loss.kd": False, "loss.hard.weight": 1}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(7, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def student(distilled: tuple[RunFolder, Events]) -> Path:
    return distilled[0].path


def test_import_alone_loads_no_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import distill; dir(distill); "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert set(printed.stdout.split()) - sys.stdlib_module_names == {"distill"}


def test_every_public_name_is_documented() -> None:
    for name in distill.__all__:
        assert getattr(distill, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        distill.evalute  # noqa: B018
    named = set(re.findall(r"`(\w+)\(", PAGE.read_text()))
    functions = {name for name in distill.__all__ if name.islower()}
    assert functions <= named


@pytest.mark.long
def test_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "epoch 2: " in printed and "2,000 images" in printed
    assert "optim.lr" in printed and "train.epochs" in printed, "all faults, with a suggestion"
    assert np.shape(names["probabilities"]) == (5, 10)


def test_loaded_network_has_the_final_weights(student: Path) -> None:
    loaded = load_run(str(student))
    assert loaded.path == student and loaded.image_size == 32 and len(loaded.class_names) == 10
    assert not loaded.network.training
    saved = np.load(student / "evaluation.npz")
    from distill.data.sources import load_data_set

    images = load_data_set.load("synthetic", "test").images[:50]
    with torch.no_grad():
        logits = loaded.network(torch.from_numpy(images) / 255)
    assert np.allclose(logits, saved["logits"][:50], atol=1e-4)


def test_probabilities_are_those_of_the_command(student: Path, pixels: np.ndarray) -> None:
    np.save(student.parent / "images.npy", pixels)
    for mirror in (False, True):
        wanted = predictions_csv.predict(
            RunFolder(student), student.parent / "images.npy", mirror=mirror
        ).probabilities
        found = predict(student, pixels, mirror=mirror)
        assert found.shape == (7, 10) and found.dtype == np.float64
        assert np.allclose(found.sum(axis=1), 1)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("form", ["last", "float", "double", "tensor", "list", "readonly", "view"])
def test_every_form_of_images_is_predicted_alike(
    student: Path, pixels: np.ndarray, form: str
) -> None:
    channels_last = pixels.transpose(0, 2, 3, 1)
    readonly = pixels.copy()
    readonly.flags.writeable = False
    images = {
        "last": channels_last,
        "float": pixels.astype(np.float32) / 255,
        "double": pixels / 255,
        "tensor": torch.from_numpy(pixels) / 255,
        "list": list(channels_last),
        "readonly": readonly,
        "view": pixels[::-1],
    }[form]
    wanted = predict(student, pixels)
    assert np.allclose(
        predict(student, images), wanted[::-1] if form == "view" else wanted, atol=1e-6
    )


def test_no_images_have_no_probabilities(student: Path, pixels: np.ndarray) -> None:
    assert predict(student, pixels[:0]).shape == (0, 10)


def test_mode_of_the_network_is_restored(student: Path, pixels: np.ndarray) -> None:
    loaded = load_run(student)
    wanted = predict(loaded, pixels)
    loaded.network.train()
    assert np.array_equal(predict(loaded, pixels), wanted)
    assert loaded.network.training


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 32, 32), np.int64), r"are torch\.int64: give uint8 in 0\.\.255"),
        (np.full((2, 3, 32, 32), 255.0), r"from 255 to 255: floats must be in \[0, 1\]"),
        (np.full((2, 3, 32, 32), -0.5), r"from -0\.5 to -0\.5: floats must be in"),
        (np.full((2, 3, 32, 32), np.nan), "from nan to nan: floats must be in"),
        (np.zeros((3, 32, 32)), r"\[3, 32, 32\], not .*: for one image give images\[None\]"),
        (np.zeros((2, 3, 48, 48)), r"\[2, 3, 48, 48\], not \[N, 3, 32, 32\] or .*: resize them to"),
        (np.zeros((2, 28, 28)), "RGB images have three channels"),
        (np.zeros((2, 1, 32, 32)), "RGB images have three channels"),
        ([np.zeros((32, 32, 3)), np.zeros((31, 32, 3))], "not an array of numbers"),
        (["cat.png"], "not an array of numbers"),
        (None, "not an array of numbers"),
    ],
)
def test_wrong_images_are_refused(student: Path, images: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict(student, images)  # type: ignore[arg-type]


def test_all_faults_of_images_are_reported(student: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)\[1, 3, 8, 8\].*values from 2 to 2"):
        predict(student, np.full((1, 3, 8, 8), 2.0))


@pytest.mark.long
def test_measures_are_those_of_the_command(student: Path, teacher: Path) -> None:
    measured = evaluate(student, against=load_run(teacher), mirror=True)
    assert measured["n"] == 2000 and measured["mirror"] and measured["against"]
    plain = evaluate_run(RunFolder(student))
    assert {key: measured[key] for key in plain} == plain
    json.dumps(measured)


@pytest.mark.parametrize("function", [load_run, evaluate, lambda run: predict(run, np.zeros(1))])
def test_missing_run_is_refused(tmp_path: Path, function: object) -> None:
    with pytest.raises(UserError, match="nowhere is not a run: there is no such folder"):
        function(tmp_path / "nowhere")  # type: ignore[operator]


@pytest.mark.long
def test_events_are_yielded_and_recorded(tmp_path: Path) -> None:
    events = list(train_student("tiny", out=tmp_path / "run", overrides=SMALL))
    assert isinstance(events[0], Start) and isinstance(events[-1], End)
    assert journal.events(tmp_path / "run" / "journal.jsonl") == events
    origins = json.loads((tmp_path / "run" / "environment.json").read_text())["recipe_origins"]
    assert origins["data.train_images"] == "--set"
    resumed = train_student("tiny", out=tmp_path / "run", overrides=SMALL, resume=True)
    assert list(resumed) == []
    assert predict(tmp_path / "run", np.zeros((1, 3, 32, 32))).shape == (1, 10)


def interrupted(events: Iterator[Event]) -> Events:
    """Read events until the end of the first epoch, and stop the training there."""
    seen = []
    for event in events:
        seen.append(event)
        if isinstance(event, Epoch):
            break
    events.close()  # type: ignore[attr-defined]
    return seen


@pytest.mark.long
def test_training_that_was_left_can_be_resumed(tmp_path: Path) -> None:
    overrides = SMALL | {"train.epochs": 3}
    whole = list(train_student("tiny", out=tmp_path / "whole", overrides=overrides))
    cut = tmp_path / "cut"
    interrupted(train_student("tiny", out=cut, overrides=overrides))
    with pytest.raises(UserError, match="cut already contains a run"):
        train_student("tiny", out=cut, overrides=overrides)
    list(train_student("tiny", out=cut, overrides=overrides, resume=True))
    recorded = journal.events(cut / "journal.jsonl")
    assert [e.step for e in recorded if isinstance(e, Epoch)] == [2, 4, 6]
    assert whole[-1].metrics == recorded[-1].metrics  # type: ignore[union-attr]


def test_request_is_checked_at_once(tmp_path: Path, student: Path) -> None:
    with pytest.raises(UserError, match="(?s)2 faults in tiny.*train.epohcs.*optim.lr"):
        train_student("tiny", out=tmp_path / "a", overrides={"optim.lr": -1, "train.epohcs": 2})
    with pytest.raises(UserError, match=r"distill needs a \[student\] table"):
        train_student("teacher_wrn", out=tmp_path / "a")
    with pytest.raises(UserError, match="teacher"):
        train_teacher("kd", out=tmp_path / "a")
    with pytest.raises(UserError, match="(?s)data.source.* overrides --data.*Give one of the two"):
        train_student(
            "tiny", out=tmp_path / "a", data="synthetic", overrides={"data.source": "cifar10"}
        )
    with pytest.raises(UserError, match="is the run of a student, and train-teacher trains"):
        train_teacher("tiny", out=student, overrides=SMALL, resume=True)
    with pytest.raises(UserError, match="(?s)recipe.*train.epochs"):
        train_student("tiny", out=student, overrides=SMALL | {"train.epochs": 9}, resume=True)
    assert not (tmp_path / "a").exists()


@pytest.mark.long
@pytest.mark.usefixtures("fresh_accelerate")
def test_precisions_of_one_process_may_differ(tmp_path: Path, pixels: np.ndarray) -> None:
    """accelerate refuses a second Accelerator of another precision."""
    for precision in ("fp32", "bf16"):
        out, overrides = tmp_path / precision, SMALL | {"train.precision": precision}
        [start, *_, end] = train_student("tiny", out=out, overrides=overrides)
        assert isinstance(start, Start) and start.precision == precision
        assert predict(out, pixels).shape == (7, 10)
        assert evaluate(out)["top1"] == pytest.approx(end.metrics["top1/test"])  # type: ignore[union-attr]


@pytest.mark.long
def test_teacher_and_paths_are_those_given(tmp_path: Path, teacher: Path, pets: Path) -> None:
    small = {"data.train_images": 64, "loss.kd.temperature": 2.5}
    [start, *_] = train_student("tiny", teacher=[teacher], out=tmp_path / "a", overrides=small)
    assert isinstance(start, Start) and start.teacher == str(teacher)
    overrides = {"data.source": pets, "data.train_images": 24, "train.batch_size": 8}
    [start, *_] = train_teacher("tiny", out=tmp_path / "b", overrides=SMALL | overrides)
    assert isinstance(start, Start) and start.role == "teacher" and start.data == str(pets)
    assert load_run(tmp_path / "b").class_names == ("cat", "dog")


CODE = """
from pathlib import Path
from torch import nn
Path("ran").touch()
def small(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that names code beside it; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("networks.user_code._typed", set())
    Path("nets.py").write_text(CODE)
    recipe = Path("theirs.toml")
    recipe.write_text('base = "tiny"\n[student]\nnetwork = "nets.py:small"\n')
    return recipe


def test_recipe_of_a_stranger_runs_no_code(stranger: Path) -> None:
    with pytest.raises(UserError, match="the network is defined by the code of nets.py"):
        list(train_student(stranger, out="run", overrides=SMALL))
    assert not Path("ran").exists()


@pytest.mark.long
def test_typed_code_is_run(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = SMALL | {"student.network": "nets.py:small"}
    list(train_student("tiny", out="run", overrides=own))
    assert Path("ran").exists()
    monkeypatch.setattr("networks.user_code._typed", set())
    with pytest.raises(UserError, match="the network is defined by the code of nets.py"):
        load_run("run")
    monkeypatch.setenv("UNDERSTUDY_CODE", "nets.py")
    assert predict("run", np.zeros((1, 3, 32, 32))).shape == (1, 10)
