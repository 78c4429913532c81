"""`doctor`: what it checks, what it says to do, and its exit code."""

import json
import sys
from collections.abc import Iterator
from importlib import metadata
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from distill import check_installation
from distill.models import check_convolutions
from distill.terminal.doctor_table import doctor_table
from distill.training import check_machine
from tests.cli.command_line import RunCli, unfolded


@pytest.fixture(autouse=True)
def folder_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, with an empty cache and enough free disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    usage = SimpleNamespace(free=10**12)
    monkeypatch.setattr(check_machine.shutil, "disk_usage", lambda _: usage)
    yield


def results(run_cli: RunCli, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit code, and each check of `doctor --json` by name."""
    result = run_cli("doctor", *arguments, "--json")
    printed = json.loads(result.out)
    checks = {check["name"]: check for check in printed["checks"]}
    assert printed["ok"] == (result.code == 0)
    assert printed["ok"] == all(check["state"] != "fault" for check in checks.values())
    return result.code, checks


def faults(checks: dict[str, dict[str, str]]) -> list[str]:
    return [name for name, check in checks.items() if check["state"] == "fault"]


@pytest.mark.long
def test_machine_without_faults(run_cli: RunCli) -> None:
    code, checks = results(run_cli, "--data", "synthetic", "--recipe", "student_alone+quickstart")
    assert code == 0, checks
    assert list(checks) == [
        "Python", "libraries", "torch", "device", "threads", "memory, teacher", "memory, student",
        "disk, runs", "disk, cache", "data", "convolutions",
    ]  # fmt: skip
    assert checks["data"]["found"] == "synthetic, 6,000 training and 2,000 test images"


def test_table_shows_what_to_do(run_cli: RunCli) -> None:
    result = run_cli("doctor")
    assert result.code == 1
    shown = unfolded(result.out)
    assert "convolutions" in shown and "fault" in shown
    assert "python cli.py data fetch cifar10" in shown
    assert result.err.endswith("Training would fail here: 1 fault (data).\n")


def test_advice_is_indented_below_what_was_found() -> None:
    checks = [check_installation.Check("threads", "note", "9 on 4", "set OMP_NUM_THREADS=4")]
    console = Console(width=40, file=StringIO())
    console.print(doctor_table(checks))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines[2:] == ["threads  note    9 on 4", f"{' ' * 19}Set OMP_NUM_THREADS=4"]


def test_missing_data_is_a_fault(run_cli: RunCli) -> None:
    code, checks = results(run_cli)
    assert code == 1 and faults(checks) == ["data"]
    assert "CIFAR-10 is in none of these locations" in checks["data"]["found"]
    assert "Type python cli.py data fetch cifar10" in checks["data"]["advice"]
    assert checks["data"]["advice"].endswith("type --data synthetic.")


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_other_images_than_the_published_are_noted(
    source: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"faults": [], "train_images": 9, "test_images": 3, "is_genuine": False}
    monkeypatch.setattr(check_machine.load_data_set, "info", lambda *_, **__: facts)
    code, checks = results(run_cli, "--data", source)
    assert code == 0 and checks["data"]["state"] == "note"
    counted = "9 training and 3 test images"
    assert checks["data"]["found"] == f"{source}, {counted}, not the published ones"
    assert f"data verify {source}" in checks["data"]["advice"]


def test_too_little_memory_is_a_fault(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine, "available_memory", lambda _: 5 * 10**7)
    code, checks = results(run_cli, "--data", "synthetic", "--recipe", "kd+two_cores")
    assert code == 1 and faults(checks) == ["memory, student"]
    found = checks["memory, student"]
    assert found["found"].startswith("50.0 MB available, at least ")
    assert "--set train.accumulate=" in found["advice"]


@pytest.mark.long
def test_tight_memory_is_noted(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = check_machine.recipes.load("kd+two_cores", ["data.source=synthetic"]).recipe
    [need] = check_machine.memory_needs(recipe, torch.device("cpu")).values()
    monkeypatch.setattr(check_machine, "available_memory", lambda _: int(1.1 * need.total))
    code, checks = results(run_cli, "--data", "synthetic", "--recipe", "kd+two_cores")
    assert code == 0 and checks["memory, student"]["state"] == "note"
    assert "train.accumulate=2" in checks["memory, student"]["advice"]


def test_full_disk_is_a_fault(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=10**6)
    monkeypatch.setattr(check_machine.shutil, "disk_usage", lambda _: usage)
    code, checks = results(run_cli, "--data", "synthetic")
    assert code == 1 and faults(checks) == ["disk, runs", "disk, cache"]
    assert checks["disk, runs"]["found"].startswith("1.0 MB free in ")
    assert "delete old runs, or give another --out" in checks["disk, runs"]["advice"]
    assert "set UNDERSTUDY_CACHE" in checks["disk, cache"]["advice"]


def test_broken_kernel_is_a_fault(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight gradient that is half too large in channels_last, and right in contiguous memory."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: Tensor) -> Tensor:
            return weight.view_as(weight)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 1.5 * gradient

    right = nn.Conv2d._conv_forward

    def forward(self: nn.Conv2d, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        is_broken = maps.is_contiguous(memory_format=torch.channels_last)
        is_broken &= maps.dtype == torch.float32 and not maps.is_contiguous()
        return right(self, maps, Wrong.apply(weight) if is_broken else weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", forward)
    code, checks = results(run_cli, "--data", "synthetic")
    assert code == 1 and faults(checks) == ["convolutions"]
    n = len(check_convolutions.SHAPES)
    assert checks["convolutions"]["found"].startswith(f"{n} with wrong gradients: Conv2d(")
    assert "channels_last, is off by 0.5 of the largest gradient" in checks["convolutions"]["found"]
    assert "another version of torch" in checks["convolutions"]["advice"]


def test_gradients_that_are_not_finite_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        convolution.weight.fill_(float("nan"))
    assert check_convolutions.gradient_error(convolution, torch.ones(1, 2, 4, 4)) == float("inf")


def test_wrong_pair_stops_the_other_checks(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "2.11.0+cpu", "torchvision": "0.29.2"}
    found = metadata.version
    monkeypatch.setattr(
        check_installation, "version", lambda name: versions.get(name) or found(name)
    )
    monkeypatch.setattr(
        check_installation, "requires", lambda _: ["numpy", "torch==2.15.0", "pillow"]
    )
    code, checks = results(run_cli, "--data", "synthetic")
    assert code == 1 and list(checks) == ["Python", "libraries", "torch"]
    assert checks["torch"]["found"] == (
        "torch 2.11.0+cpu, torchvision 0.29.2, which was built for torch 2.15.0"
    )
    assert checks["torch"]["advice"] == (
        "install the pair in one command: uv pip install torch==2.15.0 torchvision==0.29.2"
    )


def test_missing_library_is_a_fault(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.version

    def version(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(check_installation, "version", version)
    code, checks = results(run_cli, "--data", "synthetic")
    assert code == 1 and faults(checks) == ["libraries"]
    assert checks["libraries"]["found"] == "not installed: timm"
    assert checks["libraries"]["advice"] == check_installation.INSTALL


def test_broken_library_is_a_fault(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distill.training.check_machine", None)
    code, checks = results(run_cli, "--data", "synthetic")
    assert code == 1 and faults(checks) == ["torch, import"]
    assert checks["torch, import"]["found"].startswith("cannot be imported: ModuleNotFoundError: ")
    assert check_installation.INSTALL in checks["torch, import"]["advice"]


def test_small_address_space_is_a_fault(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it the import of torch would end the process without a message."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * 10**9, resource.RLIM_INFINITY))
    code, checks = results(run_cli, "--data", "synthetic")
    assert code == 1 and list(checks) == ["Python", "libraries", "torch", "address space"]
    assert checks["address space"]["found"].startswith("limited to 3.0 GB (ulimit -v); torch")
    assert checks["address space"]["advice"].startswith("type ulimit -v unlimited")


def test_old_python_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    python, *_ = check_installation.check_installation()
    assert (python.state, python.found) == ("fault", "3.10")
    assert python.advice == "3.11 or newer is needed: type make PYTHON=python3.11 venv"


def test_too_many_threads_are_noted(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine.torch, "get_num_threads", lambda: 4096)
    code, checks = results(run_cli, "--data", "synthetic")
    assert code == 0 and checks["threads"]["state"] == "note"
    assert checks["threads"]["advice"].startswith("set OMP_NUM_THREADS=")


def test_few_threads_on_request_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(check_machine.torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    check = check_machine._check_threads()
    assert (check.state, check.found) == ("note", "1 on 16 usable processors")
    assert check.advice.startswith("unset OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")  # one thread on each physical core
    assert check_machine._check_threads().state == "ok"


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "cpu, fp32, or bf16 with AMX"),
        ({"avx512_bf16": True}, "cpu, fp32, or bf16 with AVX-512"),
        ({}, "cpu, fp32 (the CPU has no instructions for bf16)"),
    ],
)
def test_precision_is_that_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], found: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(check_machine.shutil, "which", lambda _: None)
    check = check_machine._check_device(torch.device("cpu"), None)
    assert (check.state, check.found) == ("ok", found)
    bf16 = check_machine.recipes.load("kd", ["train.precision=bf16"]).recipe
    check = check_machine._check_device(torch.device("cpu"), bf16)
    assert check.state == ("ok" if capabilities else "note")


def test_driver_without_usable_gpu_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    check = check_machine._check_device(torch.device("cpu"), None)
    assert check.state == "note" and "torch finds no GPU" in check.advice
