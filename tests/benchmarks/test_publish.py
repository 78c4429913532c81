"""A finished run as a small folder: what it holds, and that it is a run like any other."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import publish
from distill.recipe import recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.runs import read_predictions
from distill.runs.run_folder import RunFolder
from tests.cli.command_line import REPO, RunCli

pytestmark = pytest.mark.slow  # a benchmark's script, not the library


@pytest.fixture(scope="module")
def published(
    teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, RunFolder]:
    """A run of the command line and the folder made of it."""
    place = tmp_path_factory.mktemp("published")
    typed = ["distill", "--recipe", "tiny", "--teacher", str(teacher), "--out", str(place / "run")]
    subprocess.run([sys.executable, "cli.py", *typed], cwd=REPO, check=True, capture_output=True)
    publish.main([str(place / "run"), "small", "--results", str(place)])
    return RunFolder(place / "run"), RunFolder(place / "small")


def test_published_folder_has_half_the_bytes_no_paths(published) -> None:
    run, folder = published
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        "recipe.toml", "journal.jsonl", "environment.json", "evaluation.npz", "result.json",
        "student.safetensors",
    }  # fmt: skip
    whole, halved = (load_file(each.weights("student")) for each in (run, folder))
    assert halved.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(halved[name], value.half() if value.is_floating_point() else value)
    with np.load(folder.evaluation) as arrays:
        assert not {"mistakes", "mistake_pixels"} & set(arrays.files)
    texts = [
        path.read_text()
        for path in folder.path.iterdir()
        if path.suffix[1:] in ("json", "jsonl", "toml")
    ]
    assert len(texts) == 4
    assert not any('"/' in text or "'/" in text for text in texts)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/my runs/teacher", "teacher"),
        (
            "0 of 2 views are cached in /home/me/.cache/targets, 20 MB",
            "0 of 2 views are cached in targets, 20 MB",
        ),
        (["--data=/home/me/data", {"out": "(/tmp/x)"}], ["--data=data", {"out": "(x)"}]),
        ("12/20 epochs, 3 images/s, runs/a", "12/20 epochs, 3 images/s, runs/a"),
    ],
)
def test_paths_are_replaced_by_their_names(value: object, expected: object) -> None:
    assert publish.named(value) == expected


def test_its_figures_are_those_of_the_halved_weights(published, run_cli: RunCli) -> None:
    run, folder = published
    result = folder.result()
    predictions = read_predictions.read_run(folder)
    assert predictions is not None
    assert result["metrics"]["top1/test"] == pytest.approx(float(predictions.is_correct.mean()))
    assert result["published"]["metrics"] == run.result()["metrics"]
    assert result["recipe_fingerprint"] == recipe_fingerprint(recipes.read(folder.recipe))
    evaluated = run_cli("evaluate", str(folder.path), "--json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out)["top1"] == pytest.approx(result["metrics"]["top1/test"])


def test_it_is_exported(published, run_cli: RunCli, tmp_path: Path) -> None:
    _, folder = published
    result = run_cli("export", str(folder.path), "--format", "project1", "--out", str(tmp_path))
    assert result.code == 0, result.err


def test_weights_that_are_too_large_are_refused(
    distilled, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(publish, "MAX_BYTES", 100)
    with pytest.raises(SystemExit):
        publish.main([str(distilled[0].path), "small", "--results", str(tmp_path)])
    error = " ".join(capsys.readouterr().err.split())
    assert "a published folder may have at most 100." in error
    assert not (tmp_path / "small").exists()
