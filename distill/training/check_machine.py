"""Check that this machine can train: device, threads, memory, disk, images, convolutions."""

import os
import shutil
from pathlib import Path

import torch

from distill.check_installation import Check
from distill.components.build_accelerator import bf16_instructions, evaluation_accelerator
from distill.data.array_cache import cache_folder
from distill.data.sources import load_data_set
from distill.data.sources.load_data_set import Progress
from distill.errors import UserError
from distill.format import format_size
from distill.models.check_convolutions import wrong_gradients
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import RUNS, Role
from distill.training.memory_need import (
    MemoryNeed,
    available_memory,
    memory_fault,
    recipe_need,
)

KNOWN_IMAGES = {"cifar10": (50_000, 10), "cifar100": (50_000, 100)}  # training images, classes
OTHER_IMAGES = (0, 10)  # of other sources, which are not read for the estimate
THREADS = "OMP_NUM_THREADS"
PEAK = 1.7  # the measured peak of a step on a CPU is at most this multiple of the estimate
LEAST_DISK = 1e9  # bytes for checkpoints, reports and cached images
MOST_COPIES = 8  # of the weights in a run folder: two checkpoints with optimizer and average, best


def check_machine(
    recipe: Recipe | None, source: str, *, progress: Progress | None = None
) -> list[Check]:
    """Check this machine for trainings in general, or for those of `recipe`.

    `source`: the images to find and read. `progress` is called while they are read.
    """
    device = evaluation_accelerator().device
    needs = {} if recipe is None else memory_needs(recipe, device)
    return [
        _check_device(device, recipe),
        _check_threads(),
        *_check_memory(recipe, needs, available_memory(device)),
        *(_check_disk(name, folder, needs) for name, folder in _folders().items()),
        _check_data(source, progress),
        _check_convolutions(device),
    ]


def memory_needs(recipe: Recipe, device: torch.device) -> dict[Role, MemoryNeed]:
    """Return the memory that the recipe's trainings need, by role: its teacher's, its student's.

    The teacher is left out if a loss term needs a teacher, since the recipe then cannot train one.
    """
    n_images, n_classes = KNOWN_IMAGES.get(recipe.data.source, OTHER_IMAGES)
    roles: list[Role] = []
    if recipe.teacher is not None and not recipes.has_teacher(recipe):
        roles.append("teacher")
    if recipe.student is not None:
        roles.append("student")
    return {role: recipe_need(recipe, role, n_images, n_classes, device) for role in roles}


def _check_device(device: torch.device, recipe: Recipe | None) -> Check:
    """Check which device and precision a training uses."""
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        name, precision = torch.cuda.get_device_name(device), "bf16" if bf16 else "fp16"
        return Check("device", "ok", f"{name}, {precision}")
    if shutil.which("nvidia-smi") is not None:
        advice = "torch finds no GPU: check nvidia-smi, and install a torch that matches the driver"
        return Check("device", "note", "the CPU, although an NVIDIA driver is installed", advice)
    instructions = bf16_instructions()
    if recipe is not None and recipe.train.precision == "fp16":
        advice = "type --set train.precision=auto"
        return Check("device", "note", "the CPU, which is many times slower in fp16", advice)
    if recipe is not None and recipe.train.precision == "bf16" and instructions is None:
        advice = "type --set train.precision=fp32"
        return Check("device", "note", "the CPU, which has no instructions for bf16", advice)
    if instructions is None:
        found = f"{device.type}, fp32 (the CPU has no instructions for bf16)"
        return Check("device", "ok", found)
    advice = "for wide networks type --set train.precision=bf16"
    return Check("device", "ok", f"{device.type}, fp32, or bf16 with {instructions}", advice)


def _check_threads() -> Check:
    """Compare torch's threads with the processors that this process may use."""
    threads = torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = f"{threads} on {usable} usable processors"
    if usable is not None and threads > usable:
        return Check("threads", "note", found, f"set {THREADS}={usable}")
    if usable is not None and threads < usable and THREADS in os.environ:
        advice = f"unset {THREADS} to use all, unless other programs need them"
        return Check("threads", "note", found, advice)
    return Check("threads", "ok", found)


def _check_memory(
    recipe: Recipe | None, needs: dict[Role, MemoryNeed], available: int | None
) -> list[Check]:
    """Compare the available memory with the need of each training of the recipe."""
    if available is None:
        return [Check("memory", "note", "unknown on this system")]
    if recipe is None:
        advice = "compare it with a recipe: doctor --recipe NAME"
        return [Check("memory", "ok", f"{format_size(available)} available", advice)]
    return [_compare(recipe, role, need, available) for role, need in needs.items()]


def _compare(recipe: Recipe, role: Role, need: MemoryNeed, available: int) -> Check:
    name = f"memory, {role}"
    fault = memory_fault(need, available, recipe, role)
    found = f"{format_size(available)} available, at least {format_size(need.total)} needed"
    if fault is not None:
        return Check(name, "fault", found, fault.partition("\n")[2])
    if PEAK * need.total > available:
        advice = "it may not fit; if the memory fills up, type --set train.accumulate=2"
        return Check(name, "note", found, advice)
    return Check(name, "ok", found)


def _folders() -> dict[str, Path]:
    return {"disk, runs": Path(RUNS), "disk, cache": cache_folder()}


def _check_disk(name: str, folder: Path, needs: dict[Role, MemoryNeed]) -> Check:
    """Check the free space of the file system that a folder is in, or will be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = max([LEAST_DISK, *(MOST_COPIES * need.state for need in needs.values())])
    found = f"{format_size(free)} free in {existing}"
    if not os.access(existing, os.W_OK):
        return Check(name, "fault", f"{existing} may not be written", _advise_other_folder(name))
    if free < needed:
        advice = f"{format_size(int(needed))} may be needed: delete old runs, or "
        advice += _advise_other_folder(name)
        return Check(name, "fault", found, advice)
    return Check(name, "ok", found)


def _advise_other_folder(name: str) -> str:
    is_cache = name.endswith("cache")
    return "set UNDERSTUDY_CACHE to another folder" if is_cache else "give another --out"


def _check_data(source: str, progress: Progress | None) -> Check:
    """Find and read all images; check that those of CIFAR-10 and -100 are the published ones."""
    try:
        facts = load_data_set.info(source, progress=progress)
    except UserError as fault:
        first, _, rest = str(fault).partition("\n")
        advice = f"{rest}\nTo try the program without images, type --data synthetic."
        return Check("data", "fault", first, advice)
    if facts["faults"]:
        first, _, rest = facts["faults"][0].partition("\n")
        return Check("data", "fault", first, rest)
    counts = f"{facts['train_images']:,} training and {facts['test_images']:,} test images"
    found = f"{source}, {counts}"
    if source in load_data_set.NAMED and not facts["is_genuine"]:
        advice = f"type python cli.py data verify {source}, or data fetch {source} for the archive"
        return Check("data", "note", f"{found}, not the published ones", advice)
    genuine = ", the published ones" if facts["is_genuine"] else ""
    return Check("data", "ok", f"{found}{genuine}")


def _check_convolutions(device: torch.device) -> Check:
    """Compare gradients of convolutions with float64."""
    wrong = wrong_gradients(device)
    if not wrong:
        return Check("convolutions", "ok", "gradients equal those in float64 up to rounding")
    worst = max(wrong, key=lambda each: each.error)
    found = (
        f"{len(wrong)} with wrong gradients: {worst.convolution}, {worst.layout}, is off by "
        f"{worst.error:.2g} of the largest gradient"
    )
    advice = "do not train here with this torch; install another version of torch and torchvision"
    return Check("convolutions", "fault", found, advice)
