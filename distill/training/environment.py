"""Record versions, hardware, command and source hash of a run."""

import hashlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from distill.errors import UserError
from distill.files import json_files, urls

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("distill", "teachers", "students", "cli.py")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "einops", "numpy", "safetensors")


def describe(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, hardware, processes, precision, the command, the hash of our source."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    return {
        "command": list(map(urls.hide_secrets, sys.argv)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu",
        "cuda": torch.version.cuda if on_gpu else None,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "precision": precision_name(accelerator),
        "source": source_hash(),
    }


def precision_name(accelerator: Accelerator) -> str:
    """`fp32`, `bf16` or `fp16`: accelerate calls the first `no`."""
    mixed: str = accelerator.mixed_precision
    return "fp32" if mixed == "no" else mixed


def source_hash() -> str:
    """sha256 over our Python files, by path: two results of one hash came from one program."""
    digest = hashlib.sha256()
    for room in SOURCE_FOLDERS:
        here = ROOT / room
        for file in sorted(here.rglob("*.py")) if here.is_dir() else [here]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def earlier_source_hashes(path: Path) -> list[str]:
    """The hashes of our source that a run has been trained with, in order, from its
    environment.json; none if the file is absent or damaged.
    """
    try:
        known = json_files.environment(path)
    except UserError:
        return []
    return list(known.get("sources") or filter(None, [known.get("source")]))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
