"""Weights and logits that are not finite, from a diverged run or a damaged file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.metrics import measures
from distill.models import checkpoint
from distill.runs.journal import without_nan
from distill.runs.run_folder import RunFolder, file_sha256
from tests.cli.command_line import RunCli, assert_refused


@pytest.fixture(scope="module")
def broken(distilled, tmp_path_factory) -> RunFolder:
    """A finished run whose weights and logits are NaN, fingerprint and all."""
    path = tmp_path_factory.mktemp("broken") / "run"
    run = RunFolder(Path(shutil.copytree(distilled[0].path, path)))
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
    with np.errstate(all="ignore"):
        found = measures(arrays["logits"], arrays["labels"])
    tested = {f"{name}/test": found[name] for name in ("top1", "nll", "ece")}
    result = run.result() | {
        "weights": file_sha256(run.weights("student")),
        "evaluation": file_sha256(run.evaluation),
        "metrics": run.result()["metrics"] | tested,
    }
    run.result_file.write_text(json.dumps(result))
    return run


def test_json_has_null_for_number_in_tuple():
    assert without_nan({"a": (1.0, float("nan")), "b": [(float("inf"),)]}) == {
        "a": [1.0, None],
        "b": [[None]],
    }


@pytest.mark.long
def test_compare_prints_json_of_numbers_that_are_none(broken, distilled, run_cli: RunCli):
    result = run_cli("compare", distilled[0].path, broken.path, "--json")
    assert result.code == 0, result.err
    values = json.loads(result.out)
    assert values["b"]["nll_test"] is None and values["b"]["nll_test_interval"] == [None, None]
    result = run_cli("compare", distilled[0].path, broken.path)
    assert result.code == 0 and "Traceback" not in result.err


@pytest.mark.parametrize("command", ["export", "predict"])
def test_a_network_of_nan_leaves_no_file(command, broken, run_cli: RunCli):
    np.save("images.npy", np.zeros((2, 32, 32, 3), np.uint8))
    more = {
        "export": ["--format", "project1", "--out", "out"],
        "predict": ["--input", "images.npy", "--out", "out.csv"],
    }[command]
    assert_refused(run_cli(command, broken.path, *more), "returns no finite numbers")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["images.npy"]


@pytest.mark.long
def test_evaluate_of_network_of_nan_is_one_message(broken, run_cli: RunCli):
    assert_refused(run_cli("evaluate", broken.path, "--json"), "returns no finite numbers")


@pytest.mark.long
def test_report_of_network_of_nan_is_written(broken, run_cli: RunCli):
    result = run_cli("report", broken.path, "--out", "a.html")
    assert result.code == 0, result.err
