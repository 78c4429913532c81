"""A finished teacher and a finished student, trained once for all tests; the versions in use."""

import os
import platform
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions as find
from importlib.metadata import version
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: a core each, set before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from accelerate.state import AcceleratorState

import cli
from distill.runs.run_folder import RunFolder
from tests.cli.command_line import CommandResult, RunCli, write_pets
from tests.make_runs import EFFICIENT, EFFICIENT_TEACHER, Events, train, two_epochs

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
INSTALLED = Path(sys.prefix) / ".installed"  # touched by `make venv`
WEEK_S = 7 * 24 * 3600
MEMORY_DISK = Path("/dev/shm")  # of Linux; flushing a file to it costs no time
LEAST_FREE = 4 << 30  # bytes


def pytest_configure() -> None:
    """Create the tests' temporary folders in memory if there is enough of it."""
    if MEMORY_DISK.is_dir() and shutil.disk_usage(MEMORY_DISK).free > LEAST_FREE:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_DISK))


def pytest_report_header() -> list[str]:
    """The versions that the tests run with; a note if the environment is old."""
    declared = tomllib.loads(PROJECT.read_text())["project"]
    lines = sum(declared["optional-dependencies"].values(), declared["dependencies"])
    names = [re.split(r"[\[<>=]", line)[0] for line in lines]
    versions = ", ".join(f"{name} {version(name)}" for name in names if [*find(name=name)])
    onednn = re.search(r"MKL-DNN (v[\d.]+)", torch.__config__.show())
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, oneDNN {onednn[1] if onednn else 'absent'}"
    header = f"versions: Python {platform.python_version()}, {versions}; CPU: {cpu}"
    return [header, *stale_environment(INSTALLED, time.time())]


def stale_environment(installed: Path, now: float) -> list[str]:
    """What to type if the environment was installed more than a week before `now` (in seconds)."""
    if not installed.exists() or now - installed.stat().st_mtime <= WEEK_S:
        return []
    days = int((now - installed.stat().st_mtime) / (24 * 3600))
    return [
        f"note: the environment was installed {days} days ago and a new one may get newer "
        "libraries; type: rm -rf .venv && make venv"
    ]


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished teacher's run folder."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    train(out, "loss.kd=false", "loss.hard.weight=1.0", "ema.decay=0.9", role="teacher")
    return out


@pytest.fixture(scope="session")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another seed."""
    out = tmp_path_factory.mktemp("runs") / "other_teacher"
    train(out, "loss.kd=false", "loss.hard.weight=1.0", "train.seed=1", role="teacher")
    return out


@pytest.fixture(scope="session")
def distilled(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Events]:
    """A finished student of that teacher: two epochs, mixing, averaged weights."""
    return train(tmp_path_factory.mktemp("runs") / "student", *two_epochs(teacher))


@pytest.fixture(scope="session")
def efficient(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Events]:
    """A finished run of a network with pooled stages and a whitened stem."""
    return train(tmp_path_factory.mktemp("runs") / "efficient", *EFFICIENT)


@pytest.fixture(scope="session")
def resnet_teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Events]:
    """The same network, trained as a teacher."""
    out = tmp_path_factory.mktemp("runs") / "resnet-teacher"
    return train(out, *EFFICIENT_TEACHER, role="teacher")


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """For a test of another precision: accelerate keeps one per program."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> RunCli:
    """`python cli.py …` in this process, in an empty folder, with an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int)
        return CommandResult(code, *capsys.readouterr())

    return run


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Return a folder of 32 training and 16 test images in two classes."""
    return write_pets(tmp_path / "pets")
