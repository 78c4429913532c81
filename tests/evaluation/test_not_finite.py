"""Weights and logits that are not finite, from a diverged run or a damaged file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.models import checkpoint
from distill.runs.journal import without_nan
from distill.runs.run_folder import RunFolder
from tests.cli.test_commands import Door, door, refused

__all__ = ["door"]


@pytest.fixture(scope="module")
def broken(taught, tmp_path_factory) -> RunFolder:
    """A finished run whose weights and logits are NaN, fingerprint and all."""
    path = tmp_path_factory.mktemp("broken") / "run"
    run = RunFolder(Path(shutil.copytree(taught[0].path, path)))
    weights = load_file(run.weights("student"))
    checkpoint.save_weights(
        run.weights("student"),
        {
            k: torch.full_like(v, torch.nan) if v.is_floating_point() else v
            for k, v in weights.items()
        },
    )
    with np.load(run.evaluation) as file:
        arrays = dict(file)
    arrays["logits"] = np.full_like(arrays["logits"], np.nan)
    np.savez(run.evaluation, **arrays)
    result = run.result() | {
        "weights": checkpoint.weights_fingerprint(run.weights("student")),
        "evaluation": checkpoint.weights_fingerprint(run.evaluation),
    }
    run.result_file.write_text(json.dumps(result))
    return run


def test_json_has_null_for_a_number_in_a_tuple():
    assert without_nan({"a": (1.0, float("nan")), "b": [(float("inf"),)]}) == {
        "a": [1.0, None],
        "b": [[None]],
    }


def test_compare_prints_json_of_numbers_that_are_none(broken, taught, door: Door):
    said = door("compare", taught[0].path, broken.path, "--json")
    assert said.code == 0, said.err
    known = json.loads(said.out)
    assert known["b"]["nll_test"] is None and known["b"]["nll_test_interval"] == [None, None]
    said = door("compare", taught[0].path, broken.path)
    assert said.code == 0 and "Traceback" not in said.err


@pytest.mark.parametrize("command", ["export", "predict"])
def test_a_network_of_nan_leaves_no_file(command, broken, door: Door):
    np.save("images.npy", np.zeros((2, 32, 32, 3), np.uint8))
    more = {
        "export": ["--format", "project1", "--out", "out"],
        "predict": ["--input", "images.npy", "--out", "out.csv"],
    }[command]
    refused(door(command, broken.path, *more), "returns no finite numbers")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["images.npy"]


def test_evaluate_of_a_network_of_nan_is_one_message(broken, door: Door):
    refused(door("evaluate", broken.path, "--json"), "returns no finite numbers")


def test_a_report_of_a_network_of_nan_is_written(broken, door: Door):
    said = door("report", broken.path, "--out", "a.html")
    assert said.code == 0, said.err
