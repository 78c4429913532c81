"""Class folders of 64-pixel images, through every command from the teacher to the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.sources import load_data_set
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from tests.cli.command_line import ALONE, SMALL, RunCli, assert_refused, write_pets

SIZE = 64
STUDENT = ["--set", "student.stages=3", "--set", "train.epochs=1"]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """The pets, enlarged to 64 pixels."""
    root = write_pets(tmp_path / "large")
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(path)
    return root


@pytest.mark.long
def test_whole_job_on_larger_images(run_cli: RunCli, large: Path, tmp_path: Path) -> None:
    teacher, plain, cached = (tmp_path / name for name in ("teacher", "plain", "cached"))
    given = [*SMALL, "--data", large]
    trained = run_cli("train-teacher", *given, *ALONE, "--out", teacher)
    assert trained.code == 0, trained.err
    assert f"data.size: images of {SIZE}x{SIZE} pixels" in " ".join(trained.err.split())
    mixing = ["--set", "mix.cutmix={}", "--set", "augment.cutout={}"]
    distil = ["distill", *given, *STUDENT, *mixing, "--teacher", teacher]
    assert run_cli(*distil, "--out", plain).code == 0
    assert run_cli(*distil, "--set", "cache.views=1", "--out", cached).code == 0
    assert recipes.read(RunFolder(cached).recipe).data.size == SIZE
    with np.load(plain / "evaluation.npz") as saved:
        assert saved["mistake_pixels"].shape[1:] == (3, SIZE, SIZE)

    measured = run_cli("evaluate", plain, "--mirror", "--json")
    counted = run_cli("params", *SMALL[:2], *STUDENT, "--set", "data.size=64", "--json")
    design = json.loads(counted.out)
    assert json.loads(measured.out)["macs"] == design["macs"] - 8 * 16  # two classes, not ten
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (90, 120), "red").save(tmp_path / "pictures/0.png")
    csv = tmp_path / "labels.csv"
    predicted = run_cli("predict", plain, "--input", tmp_path / "pictures", "--out", csv)
    assert predicted.code == 0 and "1 image resized to 64x64 from 90x120" in predicted.err
    assert run_cli("report", plain).code == 0
    assert "64" in (plain / "report.html").read_text()

    formats = ["project1", "onnx", "torch-export", "safetensors"]
    options = [part for name in formats for part in ("--format", name)]
    exported = run_cli("export", plain, *options, "--out", tmp_path / "out")
    assert exported.code == 0, exported.err
    assert "[N, 3, 64, 64]" in exported.out
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]
    assert "[B, 3, 64, 64]" in (tmp_path / "out/project1_model.py").read_text()
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    assert program(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 2)


@pytest.mark.long
def test_resized_run_is_resumed_and_evaluated(run_cli: RunCli, large: Path, tmp_path: Path) -> None:
    """Images of 64 pixels at data.size = 32: recipe.toml is that of 32 pixels, without the key."""
    out = tmp_path / "run"
    command = ["train-teacher", *SMALL, *ALONE, "--data", large, "--out", out]
    resized = [*command, "--set", "data.size=32"]
    assert run_cli(*resized).code == 0
    run = RunFolder(out)
    assert recipes.read(run.recipe).data.size is None
    expected = load_data_set.load(str(large), "train", size=32)
    assert run.result()["data"]["fingerprint"] == expected.fingerprint
    assert run_cli("evaluate", out).code == 0
    run.result_file.unlink()  # as if it was stopped after its last checkpoint
    assert run_cli(*resized, "--resume").code == 0
    refused = run_cli(*command, "--set", "data.size=48", "--resume")
    assert_refused(refused, "data.size: absent -> 48")


@pytest.mark.long
def test_teacher_of_another_size_is_refused(run_cli: RunCli, large: Path, tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    given = [*SMALL, "--data", large]
    assert run_cli("train-teacher", *given, *ALONE, "--out", teacher).code == 0
    refused = run_cli(
        "distill", *given, "--set", "data.size=32", "--teacher", teacher, "--out", out
    )
    assert_refused(refused, "has images of 64x64 pixels, and this run of 32x32")
