"""The memory that a training needs: the estimate, what is available, and the refusal."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.components.build_network import build_network
from distill.data import free_memory
from distill.errors import UnsuitableRecipe
from distill.recipe.recipes import load
from distill.recipe.schema import Optim
from distill.training import memory_need
from distill.training.memory_need import MemoryNeed, available_memory, memory_fault
from tests.cli.command_line import ALONE, SMALL, RunCli, assert_refused
from tests.make_runs import prepared

CPU = torch.device("cpu")
GB = 1_000_000_000


def test_saved_activations_of_a_known_network() -> None:
    """Each convolution saves its input, the ReLU its output: the middle map is one tensor."""
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 1))
    expected = 4 * 32 * 32 * (3 + 5)
    assert memory_need.saved_bytes_per_image(net, CPU, nullcontext) == expected
    assert net.training


def test_measuring_changes_neither_state_nor_randomness() -> None:
    net = build_network(load("tiny").recipe, "student", 10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(1)
    memory_need.saved_bytes_per_image(net, CPU, nullcontext)
    memory_need.optimizer_copies(Optim(name="adamw"))
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        (Optim(name="sgd"), 1),
        (Optim(name="momentum", momentum=0.0), 0),
        (Optim(name="adamw"), 2),
        (Optim(name="lion"), 1),
        (Optim(name="muon"), 1),
        (Optim(name="adan"), 4),
        (Optim(name="sgd", bias_lr=64.0), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_optimizer_copies_are_those_it_stores(settings: Optim, copies: int) -> None:
    assert memory_need.optimizer_copies(settings) == pytest.approx(copies, abs=0.01)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(("precision", "share"), [("fp32", 1.0), ("bf16", 0.5)])
def test_precision_changes_the_activations(precision: str, share: float) -> None:
    state = prepared(*ALONE[1::2], f"train.precision={precision}")
    accel = state.accelerator
    measured = memory_need.saved_bytes_per_image(state.model, accel.device, accel.autocast)
    exact = memory_need.saved_bytes_per_image(state.model, CPU, nullcontext)
    assert measured == pytest.approx(share * exact, rel=0.1)


def test_need_is_the_sum_of_its_parts() -> None:
    recipe = load("kd+ema+two_cores", ["train.batch_size=100", "train.accumulate=4"]).recipe
    need = memory_need.recipe_need(recipe, "student", 1000, 10, CPU)
    parameters = sum(p.numel() for p in build_network(recipe, "student", 10).parameters())
    assert need.state == 4 * parameters * 4  # weights, gradients, momentum, average
    assert need.data == 1000 * 3 * 32 * 32
    assert need.batch == 25
    assert need.total == need.state + need.data + 25 * need.per_image


def test_a_gpu_needs_half_the_activations() -> None:
    recipe, gpu = load("kd+two_cores").recipe, torch.device("cuda")
    half = memory_need.recipe_need(recipe, "student", 0, 10, gpu)
    full = memory_need.recipe_need(recipe, "student", 0, 10, CPU)
    assert half.per_image == pytest.approx(full.per_image / 2, rel=0.1)
    assert half.state == full.state


def test_recipe_that_fits_is_not_refused() -> None:
    need = MemoryNeed(GB, GB, GB // 100, 100)
    assert memory_fault(need, 3 * GB, load("kd").recipe, "student") is None
    assert memory_fault(need, None, load("kd").recipe, "student") is None


def test_refused_batch_comes_with_one_that_fits() -> None:
    recipe = load("teacher_wrn", ["train.batch_size=128"]).recipe
    need = MemoryNeed(GB // 2, GB // 10, 20_000_000, 128)
    assert memory_fault(need, 2 * GB, recipe, "teacher") == (
        "a training step needs at least 3.2 GB more memory (weights and optimizer 500.0 MB, "
        "images 100.0 MB, activations of 128 images 2.6 GB), but only 2.0 GB is available.\n"
        "A step has 128 images (train.batch_size). Start again with --set train.accumulate=2, the "
        "same batch in smaller parts, or with a smaller train.batch_size: at most 70; or train "
        "smaller networks, as in --recipe teacher_wrn+two_cores."
    )


def test_suggested_parts_divide_the_batch() -> None:
    recipe = load("kd", ["train.batch_size=120"]).recipe
    need = MemoryNeed(0, 0, GB, 60)
    fault = memory_fault(need, 23 * GB, recipe, "student", processes=2)
    assert fault is not None and "--set train.accumulate=3," in fault
    assert "at most 46;" in fault


def test_too_large_network_is_refused_with_another() -> None:
    need = MemoryNeed(5 * GB, 0, 1, 128)
    fault = memory_fault(need, 2 * GB, load("kd").recipe, "student")
    assert fault is not None and fault.endswith(
        "Not even one image fits: end other programs, or train smaller networks, as in --recipe "
        "kd_cutmix+two_cores."
    )


@pytest.mark.long
def test_wide_resnet_needs_more_than_a_small_machine() -> None:
    need = memory_need.recipe_need(
        load("teacher_wrn", ["train.batch_size=128"]).recipe, "teacher", 50_000, 10, CPU
    )
    assert 2.3 * GB < need.batch * need.per_image < 2.6 * GB
    fault = memory_fault(need, 2 * GB, load("teacher_wrn").recipe, "teacher")
    assert fault is not None and "train.accumulate=" in fault


def test_training_is_refused_before_its_first_step(
    run_cli: RunCli, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_need, "available_memory", lambda _: 1_000)
    out = tmp_path / "run"
    command = ["distill", *SMALL, *ALONE, "--data", str(pets), "--out", str(out)]
    result = run_cli(*command)
    assert_refused(result, "a training step needs at least", "but only 1.0 kB is available")
    assert not (out / "recipe.toml").exists() and not (out / "last").exists()
    monkeypatch.undo()


def test_processes_refuse_together(monkeypatch: pytest.MonkeyPatch) -> None:
    state = prepared(*ALONE[1::2])
    monkeypatch.setattr(memory_need, "available_memory", lambda _: 10**15)
    memory_need.check_memory(state, load("tiny").recipe)
    other = "refused by the first process"
    monkeypatch.setattr(memory_need, "broadcast_object_list", lambda _: [other])
    with pytest.raises(UnsuitableRecipe, match=other):
        memory_need.check_memory(state, load("tiny").recipe)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files that describe a machine's memory: 8 GiB, 1 of them swap."""
    info = "MemTotal: 99 kB\nMemAvailable:    7340032 kB\nSwapFree:  1048576 kB\nHugePages: 0\n"
    (tmp_path / "meminfo").write_text(info)
    monkeypatch.setattr(free_memory, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(free_memory, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def test_available_memory_includes_swap(machine: Path) -> None:
    assert available_memory(CPU) == 8 * 2**30


@pytest.mark.parametrize(
    ("folder", "limit", "current"),
    [
        (".", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
    ids=["v2", "v1"],
)
def test_limit_of_a_container_counts(machine: Path, folder: str, limit: str, current: str) -> None:
    (machine / folder).mkdir(exist_ok=True)
    (machine / folder / limit).write_text(f"{4 * 2**30}\n")
    (machine / folder / current).write_text(f"{3 * 2**30}\n")
    (machine / folder / "memory.stat").write_text(
        f"anon 5\ninactive_file {2**29}\nactive_file {2**28}\n"
    )
    assert available_memory(CPU) == 2**30 + 2**29 + 2**28


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/jobs/job_7/step_0", "jobs/job_7", ("memory.max", "memory.current")),
        (
            "4:memory:/jobs/job_7",
            "memory/jobs/job_7",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
    ],
    ids=["v2", "v1"],
)
def test_limit_of_a_job_counts(
    machine: Path, line: str, folder: str, names: tuple[str, str]
) -> None:
    """The limit of a cluster's job is in a control group around that of the process."""
    (machine / "cgroup").write_text(f"9:name=systemd:/other\n{line}\nbroken\n")
    (machine / folder).mkdir(parents=True)
    for name, value in zip(names, (4 * 2**30, 3 * 2**30), strict=True):
        (machine / folder / name).write_text(f"{value}\n")
    assert available_memory(CPU) == 2**30


@pytest.mark.parametrize("limited", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_count(
    machine: Path, monkeypatch: pytest.MonkeyPatch, limited: str
) -> None:
    resource = pytest.importorskip("resource")
    (machine / "status").write_text("Name: python\nVmSize: 2097152 kB\nVmData: 2097152 kB\n")
    monkeypatch.setattr(free_memory, "OWN_SIZES", machine / "status")
    limits = {getattr(resource, limited): (5 * 2**30, resource.RLIM_INFINITY)}
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda number: limits.get(number, unlimited))
    assert available_memory(CPU) == 3 * 2**30


def test_container_without_limit_has_the_free_memory(machine: Path) -> None:
    (machine / "memory.max").write_text("max\n")
    (machine / "memory.current").write_text("1\n")
    assert available_memory(CPU) == 8 * 2**30


def test_processes_share_the_memory(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(CPU) == 2 * 2**30


def test_memory_of_other_systems_is_unknown(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert available_memory(CPU) is None
