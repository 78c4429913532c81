"""The installed program: the command `understudy`, from another folder than the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cli
from distill import check_installation
from distill.cli.options import complete_recipe
from distill.format import as_typed
from tests.cli.command_line import RunCli

REPO = Path(__file__).parents[1]
PARTS = (
    "distill", "networks", "students", "teachers", "recipes", "cli.py", "pyproject.toml",
    "README.md", "LICENSE",
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that a copy of the project is installed in, without its dependencies."""
    pytest.importorskip("setuptools", minversion="77")
    copy, site = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("site")
    for name in PARTS:
        path = REPO / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, copy / name, ignore=ignored)
        else:
            shutil.copy(path, copy / name)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--target", str(site), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(copy)
    return site


def understudy(site: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command in `folder`."""
    return subprocess.run(
        [sys.executable, str(site / "bin" / "understudy"), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
def test_installed_command_finds_its_recipes(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "kd"\noptim.lr = 0.3\n')
    shown = understudy(installed, "recipes", "mine.toml", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "lr = 0.3" in shown.stdout and "recipes/kd.toml" in shown.stdout
    listed = understudy(installed, "recipes", folder=tmp_path)
    assert "kd_cutmix" in listed.stdout and "crd_cifar100" in listed.stdout
    version = understudy(installed, "--version", folder=tmp_path)
    assert version.stdout == f"understudy {cli.VERSION}\n"


@pytest.mark.long
def test_installed_command_names_itself(installed: Path, tmp_path: Path) -> None:
    refused = understudy(installed, "recipes", "kdd", folder=tmp_path)
    assert refused.returncode == 2
    assert "`understudy recipes` lists them" in refused.stderr
    assert "cli.py" not in refused.stderr


@pytest.mark.long
def test_data_files_are_installed(installed: Path) -> None:
    for folder in ("distill", "networks", "students", "teachers"):
        assert (installed / folder / "py.typed").exists()
    assert (installed / "distill" / "report" / "report.html.j2").exists()
    shipped = {path.relative_to(REPO) for path in (REPO / "recipes").rglob("*.[tj]*")}
    assert {path for path in shipped if not (installed / path).exists()} == set()


def test_version_is_printed(run_cli: RunCli) -> None:
    assert run_cli("--version").out == f"understudy {cli.VERSION}\n"


def test_checked_libraries_are_those_declared() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    declared = sorted(re.split("[><=]", each)[0] for each in project["dependencies"])
    assert sorted(check_installation.LIBRARIES) == declared
    oldest = ".".join(map(str, check_installation.OLDEST_PYTHON))
    assert project["requires-python"] == f">={oldest}"


def test_version_is_that_of_the_citation() -> None:
    assert f"\nversion: {cli.VERSION}\n" in (REPO / "CITATION.cff").read_text()


def test_commands_in_messages_are_unchanged_uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/cli.py", "recipes"])
    assert as_typed("type python cli.py seeds") == "type python cli.py seeds"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/understudy", "recipes"])
    assert as_typed("type python cli.py seeds") == "type understudy seeds"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("teacher_w", ["teacher_wrn"]), ("kd+cuto", ["kd+cutout"]), ("nothing", [])],
)
def test_recipes_are_completed(typed: str, completed: list[str]) -> None:
    assert complete_recipe(typed) == completed


def test_shell_completion_is_switched_on(run_cli: RunCli) -> None:
    assert "--install-completion" in run_cli("--help").out
