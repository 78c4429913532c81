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
from distill.files import redact_urls, run_json_schemas

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("distill", "networks", "teachers", "students", "cli.py")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "einops", "numpy", "safetensors")


def describe(accelerator: Accelerator) -> dict[str, Any]:
    """Return the contents of environment.json: command, versions, hardware, precision,
    source hash.
    """
    device = accelerator.device
    on_gpu = device.type == "cuda"
    return {
        "command": list(map(redact_urls.hide_secrets, sys.argv)),
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
    """Return `fp32`, `bf16` or `fp16`; accelerate's name for fp32 is `no`."""
    mixed: str = accelerator.mixed_precision
    return "fp32" if mixed == "no" else mixed


def source_hash() -> str:
    """Return the sha256 of all Python files of this program and their paths.

    It identifies the version of the program.
    """
    digest = hashlib.sha256()
    for name in SOURCE_FOLDERS:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def earlier_source_hashes(path: Path) -> list[str]:
    """Return the source hashes that a run was trained with, the oldest first.

    `path`: its environment.json. Returns an empty list if the file is absent or damaged.
    """
    try:
        environment = run_json_schemas.environment(path)
    except UserError:
        return []
    return list(environment.get("sources") or filter(None, [environment.get("source")]))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
