"""A network of the user's own code from training to export, and a run folder of it elsewhere."""

from pathlib import Path

import pytest

from tests.cli.command_line import RunCli

CODE = """
from torch import nn

def small(width=4, num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )
"""
RUN = ["--set", "data.train_images=64", "--set", "loss.kd=false", "--set", "loss.hard.weight=1"]


@pytest.mark.long
def test_own_network_is_trained_evaluated_exported(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(CODE)
    own = ["--set", "student.network=nets.py:small", "--set", "student.args.width=6"]
    given = ["distill", "--recipe", "tiny", *own, *RUN, "--out", "run"]
    assert run_cli(*given).code == 0

    monkeypatch.setattr("networks.own_code._typed", set())
    refused = run_cli("evaluate", "run")
    assert refused.code == 2
    assert "if you trust it, type UNDERSTUDY_CODE=nets.py before the command" in refused.err

    monkeypatch.setenv("UNDERSTUDY_CODE", "nets.py")
    assert "nets.py:small" in run_cli("evaluate", "run").out
    assert run_cli("export", "run", "--format", "onnx", "--out", "onnx").code == 0
    for name, reason in (("safetensors", "timm cannot build"), ("project1", "exports a student")):
        failed = run_cli("export", "run", "--format", name, "--out", name)
        assert failed.code and reason in failed.err

    Path("nets.py").write_text(CODE.replace("width=4", "width=5"))
    for command in (["evaluate", "run"], [*given, "--resume"]):
        changed = run_cli(*command)
        assert changed.code == 2 and "code" in changed.err, changed.err
    Path("nets.py").unlink()
    assert "nets.py does not exist" in run_cli("evaluate", "run").err
