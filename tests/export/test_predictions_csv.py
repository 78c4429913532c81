"""Predictions of unlabelled images: equal to the run's own, in Kaggle's CSV."""

import csv
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli
from distill.components.build_network import load_trained
from distill.data.sources import load_data_set
from distill.errors import Failure, UserError
from distill.evaluation.evaluate_run import EvalOptions, evaluate_run
from distill.export import predictions_csv
from distill.files.run_json_schemas import fingerprint_of_names
from distill.runs import run_folder
from distill.runs.run_folder import RunFolder
from tests.make_runs import Events

REPO = Path(__file__).parents[2]
Distilled = tuple[RunFolder, Events]


@pytest.fixture(scope="session")
def kaggle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn test images as Kaggle's file would hold them, their ids from 1."""
    images = load_data_set.load("synthetic", "test").images
    path = tmp_path_factory.mktemp("kaggle") / "cifar_test_nolabel.pkl"
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    path.write_bytes(pickle.dumps({b"data": pixels, b"ids": np.arange(1, len(pixels) + 1)}))
    return path


@pytest.fixture(scope="session")
def saved(distilled: Distilled) -> dict[str, np.ndarray]:
    """The run's own predictions of its test images."""
    with np.load(distilled[0].evaluation) as arrays:
        return {name: arrays[name] for name in ("logits", "labels")}


def predict(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cli.py", "predict", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.long
def test_pieces_have_the_predictions_of_all(
    distilled: Distilled, kaggle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predictions_csv.predict(distilled[0], kaggle)
    done: list[tuple[str, int, int]] = []
    monkeypatch.setattr(predictions_csv, "AT_ONCE", 1000)
    pieces = predictions_csv.predict(distilled[0], kaggle, progress=lambda *row: done.append(row))
    assert np.array_equal(pieces.probabilities, whole.probabilities)
    assert done[-1] == ("predicting", 2000, 2000)
    monkeypatch.setattr(predictions_csv, "MOST_PROBABILITIES", 19_999)
    with pytest.raises(UserError, match="2,000 images of 10 classes have more than 19,999 proba"):
        predictions_csv.predict(distilled[0], kaggle)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.long
def test_csv_has_the_runs_predictions(
    distilled: Distilled,
    kaggle: Path,
    saved: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "p.csv"
    assert predict(monkeypatch, distilled[0].path, "--input", kaggle, "--out", out) == 0
    printed = capsys.readouterr()
    assert out.read_bytes().startswith(b"ID,Labels\n1,")
    body = rows(out)[1:]
    assert [name for name, _ in body] == [str(i) for i in range(1, 2001)]
    labels = np.array([int(label) for _, label in body])
    assert (labels == saved["logits"].argmax(1)).all()
    right = (labels == saved["labels"]).mean()
    assert right == distilled[0].result()["metrics"]["top1/test"]
    assert printed.out.splitlines()[-1] == f"{out}: 2,000 images"
    for name, n in zip(
        distilled[0].result()["class_names"], np.bincount(labels, minlength=10), strict=True
    ):
        assert f"{name} {n:,}" in printed.out
    assert [path.name for path in out.parent.iterdir()] == ["p.csv"]


@pytest.mark.long
def test_probabilities_have_a_column_a_class(
    distilled: Distilled,
    kaggle: Path,
    saved: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "p.csv"
    out.write_text("something else, and longer than nothing")
    options = ["--input", kaggle, "--out", out, "--probabilities"]
    assert predict(monkeypatch, distilled[0].path, *options, "--labels", "names") == 2
    assert "--labels names is for the column Labels, which --probabi" in capsys.readouterr().err
    assert predict(monkeypatch, distilled[0].path, *options) == 0
    assert f"note: {out} existed and is replaced" in capsys.readouterr().err
    header, *body = rows(out)
    assert header == ["ID", *distilled[0].result()["class_names"]]
    exponents = np.exp(saved["logits"].astype(np.float64))
    shares = np.array(body)[:, 1:].astype(float)
    np.testing.assert_allclose(shares, exponents / exponents.sum(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)


@pytest.mark.long
def test_mirror_averages_image_and_its_mirror_image(
    distilled: Distilled, kaggle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, test = distilled[0], load_data_set.load("synthetic", "test")
    out = tmp_path / "p.csv"
    options = ["--input", kaggle, "--out", out, "--mirror"]
    assert predict(monkeypatch, run.path, *options) == 0
    labels = np.array([int(label) for _, label in rows(out)[1:]])
    measured = evaluate_run(run, EvalOptions(mirror=True))["mirror"]
    assert (labels == test.labels).mean() == measured["top1"]

    assert predict(monkeypatch, run.path, *options, "--probabilities") == 0
    shares = np.array(rows(out)[1:])[:, 1:].astype(float)
    net, images = load_trained(run), torch.from_numpy(test.images) / 255
    with torch.no_grad():
        logits = (net(images) + net(images.flip(-1))) / 2
    np.testing.assert_allclose(shares, logits.softmax(1).numpy(), atol=1e-5)


def numbered(folder: RunFolder, place: Path) -> list[str]:
    """A copy of the run whose class folders were called 0 to 11, without 10: as text they sort."""
    shutil.copytree(folder.path, place)
    result = json.loads((place / "result.json").read_text())
    result["class_names"] = sorted(map(str, [*range(9), 11]))
    result["data"]["class_names_fingerprint"] = fingerprint_of_names(result["class_names"])
    (place / "result.json").write_text(json.dumps(result))
    return list(result["class_names"])


@pytest.mark.long
def test_numbers_in_text_order_are_named(
    distilled: Distilled,
    kaggle: Path,
    saved: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = numbered(distilled[0], tmp_path / "run")
    assert names[:4] == ["0", "1", "11", "2"]
    out = tmp_path / "p.csv"
    command = (tmp_path / "run", "--input", kaggle, "--out", out)
    assert predict(monkeypatch, *command) == 0
    note = "label 2 is class '11'. Type --labels names for the names."
    assert note in capsys.readouterr().err
    positions = [int(label) for _, label in rows(out)[1:]]
    assert positions == saved["logits"].argmax(1).tolist()
    assert predict(monkeypatch, *command, "--labels", "names") == 0
    assert "--labels names" not in capsys.readouterr().err
    assert [label for _, label in rows(out)[1:]] == [names[label] for label in positions]


@pytest.mark.parametrize("names", [("0", "1", "2"), ("cat", "10"), ("a",), ()])
def test_names_that_no_position_is_taken_for(names: tuple[str, ...]) -> None:
    assert predictions_csv.numeric_names_note(names) is None


def test_conversion_of_pictures_is_reported(
    distilled: Distilled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("2", "10"):
        Image.new("RGB", (50, 50), "red").save(tmp_path / f"{name}.png")
    out = tmp_path / "p.csv"
    assert predict(monkeypatch, distilled[0].path, "--input", tmp_path, "--out", out) == 0
    note = "note: 2 images resized to 32x32 from 50x50 (Pillow's bicubic)"
    assert note in capsys.readouterr().err.splitlines()
    assert [name for name, _ in rows(out)[1:]] == ["2", "10"]


@pytest.mark.parametrize(("one", "other"), [("=1+1", "'=1+1"), ("a\n", "a\\n")])
def test_ids_that_would_be_equal_are_refused(one: str, other: str, tmp_path: Path) -> None:
    predictions_csv.check_ids([one, "b", f"{other}2"], tmp_path)
    with pytest.raises(UserError, match=r"the ids .* and .* would both be .* in a CSV file"):
        predictions_csv.check_ids([one, "b", other], tmp_path)


def test_an_unusable_image_leaves_nothing(
    distilled: Distilled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (32, 32)).save(images / "0.png")
    (images / "1.png").write_text("none")
    (images / "2.png").touch()
    out = tmp_path / "new" / "p.csv"
    assert predict(monkeypatch, distilled[0].path, "--input", images, "--out", out) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"2 faults in {images}:\n  1.png: unreadable" in said.err
    assert "\n  2.png: unreadable" in said.err
    assert not out.parent.exists()


def test_csv_is_not_written_over_other_files(tmp_path: Path) -> None:
    source = tmp_path / "x.pkl"
    source.touch()
    with pytest.raises(UserError, match=f"--out {tmp_path} is a folder.\nGive --out the name of"):
        predictions_csv.check_out(tmp_path, source)
    with pytest.raises(UserError, match="is the input itself, which would be overwritten"):
        predictions_csv.check_out(tmp_path / "." / "x.pkl", source)
    with pytest.raises(UserError, match="x.pkl cannot be the folder of p.csv: .* is a file"):
        predictions_csv.check_out(source / "p.csv", source)
    with pytest.raises(UserError, match="recipe.toml does not end in .csv.\nGive --out"):
        predictions_csv.check_out(tmp_path / "recipe.toml", source)
    predictions_csv.check_out(tmp_path / "a" / "b" / "p.csv", source)
    assert list(tmp_path.iterdir()) == [source]


def test_full_disk_is_reported_and_old_file_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "p.csv"
    out.write_text("before")
    monkeypatch.setattr(run_folder.os, "fsync", full)
    found = predictions_csv.LabelledImages(("a",), np.array([[0.2, 0.8]]), ("cat", "dog"), ())
    with pytest.raises(Failure, match="p.csv could not be written .No space left on device"):
        predictions_csv.write(found, out)
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    assert out.read_text() == "before"


def test_a_run_that_is_not_finished(
    tmp_path: Path, distilled: Distilled, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    shutil.copytree(distilled[0].path, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert predict(monkeypatch, tmp_path / "run", "--input", "none.npy") == 2
    assert "is not finished: it has no result.json" in capsys.readouterr().err


def test_processes_compare_images_in_their_order(
    distilled: Distilled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str]] = []
    monkeypatch.setattr(
        predictions_csv, "check_same_inputs", lambda _, prints: found.append(prints())
    )
    images = load_data_set.load("synthetic", "test").images[:2]
    for ordered in (images, images[::-1]):
        np.save(tmp_path / "x.npy", ordered)
        predictions_csv.predict(distilled[0], tmp_path / "x.npy")
    assert found[0].keys() == {"images", "run"} and found[0]["run"] == found[1]["run"]
    assert found[0]["images"] != found[1]["images"]


@pytest.mark.multi
@pytest.mark.slow
def test_two_processes_write_what_one_does(
    distilled: Distilled, tmp_path: Path, saved: dict[str, np.ndarray]
) -> None:
    n = 7  # odd: the shares differ by one
    np.save(tmp_path / "x.npy", load_data_set.load("synthetic", "test").images[:n])
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"),
        *(REPO / "cli.py", "predict", distilled[0].path, "-i", tmp_path / "x.npy"),
        *("-o", tmp_path / "p.csv"),
    ]
    ran = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=REPO, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    expected = saved["logits"][:n].argmax(1)
    assert rows(tmp_path / "p.csv") == [
        ["ID", "Labels"],
        *([str(i), str(label)] for i, label in enumerate(expected)),
    ]
    assert ran.stdout.count(f"{tmp_path / 'p.csv'}: 7 images") == 1
    assert ran.stderr.count("numbered 0..6") == 1
