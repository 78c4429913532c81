"""Check Python and the installed libraries without importing them.

A wrong pair of torch and torchvision cannot be imported, so this module imports neither.
"""

import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

from distill.format import format_size

OLDEST_PYTHON = (3, 11)
LIBRARIES = (
    "accelerate", "einops", "filelock", "jinja2", "matplotlib", "numpy", "Pillow", "pydantic",
    "rich", "safetensors", "scipy", "timm", "tomli-w", "torch", "torchvision", "typer",
)  # fmt: skip
LEAST_ADDRESS_SPACE = 4_000_000_000  # bytes; measured: 3.6e9 without a training, torch 2.15, CPU
INSTALL = "type make venv, or uv pip install -r pyproject.toml"


@dataclass(frozen=True)
class Check:
    """The result of one check of `doctor`.

    `state`: "fault" if a training would fail, "note" if it would be slow or is at risk. `advice`:
    what to do about it; empty if there is nothing to do.
    """

    name: str
    state: Literal["ok", "note", "fault"]
    found: str
    advice: str = ""


def check_installation() -> list[Check]:
    """Check Python's version, that all libraries are installed and fit each other, and that the
    process may map them.
    """
    return [
        _check_python(tuple(sys.version_info[:2])),
        _check_libraries(),
        _check_pair(),
        *_check_address_space(),
    ]


def _check_python(found: tuple[int, ...]) -> Check:
    if found >= OLDEST_PYTHON:
        return Check("Python", "ok", platform.python_version())
    oldest = ".".join(map(str, OLDEST_PYTHON))
    return Check(
        "Python",
        "fault",
        ".".join(map(str, found)),
        f"{oldest} or newer is needed: type make PYTHON=python{oldest} venv",
    )


def _check_libraries() -> Check:
    missing = [name for name in LIBRARIES if _version(name) is None]
    if missing:
        return Check("libraries", "fault", f"not installed: {', '.join(missing)}", INSTALL)
    return Check("libraries", "ok", f"all {len(LIBRARIES)} installed")


def _check_pair() -> Check:
    """Check that torchvision is installed with the version of torch that it was built for."""
    torch, torchvision = _version("torch"), _version("torchvision")
    found = f"torch {torch or 'missing'}, torchvision {torchvision or 'missing'}"
    wanted = _torch_of_torchvision() if torchvision else None
    if torch is None or torchvision is None:
        return Check("torch", "fault", found, INSTALL)
    if wanted is not None and torch.partition("+")[0] != wanted.partition("+")[0]:
        return Check(
            "torch",
            "fault",
            f"{found}, which was built for torch {wanted}",
            f"install the pair in one command: uv pip install torch=={wanted} "
            f"torchvision=={torchvision.partition('+')[0]}",
        )
    return Check("torch", "ok", found)


def _check_address_space() -> list[Check]:
    """Check that a limit of the address space, if there is one, leaves space for the libraries.

    Without it the import of torch fails, or ends the process.
    """
    try:
        import resource  # not on Windows
    except ImportError:
        return []
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= LEAST_ADDRESS_SPACE:
        return []
    return [
        Check(
            "address space",
            "fault",
            f"limited to {format_size(limit)} (ulimit -v); torch and other libraries map "
            f"{format_size(LEAST_ADDRESS_SPACE)}",
            "type ulimit -v unlimited, or request more memory for the job",
        )
    ]


def failed_import(fault: Exception) -> Check:
    """Return the check of a library that is installed but cannot be imported."""
    found = f"cannot be imported: {type(fault).__name__}: {fault}"
    return Check(
        "torch, import", "fault", found, "install torch and its libraries again: " + INSTALL
    )


def _torch_of_torchvision() -> str | None:
    """Return the version of torch that the installed torchvision requires; None if any."""
    for requirement in requires("torchvision") or []:
        exact = re.match(r"torch\s*\(?==\s*([\w.+]+)", requirement)
        if exact:
            return exact[1]
    return None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
