"""A network of the user's own code from training to export, and a run folder of it elsewhere."""

import json
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

    monkeypatch.setattr("networks.user_code._typed", set())
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


NEEDS_WEIGHTS = """
def reads_weights(num_classes=10):
    net = small(num_classes=num_classes)
    assert net[0].weight.sum().item() != 1e9
    return net
"""


def counted(run_cli: RunCli, *arguments: str) -> dict[str, object]:
    done = run_cli("params", *arguments, "--json")
    assert done.code == 0, done.err
    facts: dict[str, object] = json.loads(done.out)
    return facts


@pytest.mark.parametrize("name", ["small", "reads_weights"])
def test_own_networks_are_counted(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(CODE + NEEDS_WEIGHTS)
    # By hand: 3 x 4 x 9 + 4, 2 x 4 and 4 x 10 + 10 parameters; the map has 15 x 15 positions.
    parameters, macs = 112 + 8 + 50, 15 * 15 * 4 * 27 + 40
    own = ("--set", f"student.network=nets.py:{name}", "--set", "student.max_params=100")
    of_student = counted(run_cli, "--recipe", "tiny", *own)
    assert of_student | {
        "network": f"nets.py:{name}", "parameters": parameters, "trainable": parameters,
        "macs": macs, "max_params": 100, "within_budget": False,
    } == of_student  # fmt: skip
    own = ("--set", f"teacher.network=nets.py:{name}")
    assert counted(run_cli, "--recipe", "teacher_wrn", *own) == {
        "recipe": "teacher_wrn", "teacher": f"nets.py:{name}", "teacher_parameters": parameters,
        "teacher_trainable": parameters, "teacher_macs": macs,
    }  # fmt: skip


def test_code_named_in_a_file_is_not_run(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text("raise SystemExit('run')")
    text = '[student]\nnetwork = "nets.py:small"\n[loss.hard]\nweight = 1.0\n[train]\nepochs = 1\n'
    Path("own.toml").write_text(text)
    refused = run_cli("params", "--recipe", "own.toml")
    assert refused.code == 2
    assert "type UNDERSTUDY_CODE=nets.py before the command" in refused.err
    checked = run_cli("design", "--check", "own.toml", "--rules", "nyu2022")
    assert checked.code == 2
    assert "the student is nets.py:small: it cannot be checked, because the rules" in checked.err
    assert "Type params to count its parameters" in checked.err


@pytest.mark.long
def test_timm_networks_are_counted(run_cli: RunCli) -> None:
    facts = counted(run_cli, "--recipe", "teacher_wrn", "--set", "teacher.network=timm/resnet18")
    assert facts["teacher"] == "timm/resnet18"
    assert facts["teacher_parameters"] == 11_689_512 - 513_000 + 5_130  # 10 classes, not 1,000
