"""What the tests print about the environment that they run in."""

import os
from pathlib import Path

import torch

from tests.conftest import pytest_report_header, stale_environment

DAY_S = 24 * 3600


def test_the_header_has_the_versions() -> None:
    [line, *_] = pytest_report_header()
    assert f"torch {torch.__version__.split('+')[0]}" in line and "accelerate" in line


def test_an_environment_older_than_a_week_is_noticed(tmp_path: Path) -> None:
    installed = tmp_path / ".installed"
    assert stale_environment(installed, now=0.0) == [], "installed by other means"
    installed.touch()
    os.utime(installed, (1000.0, 1000.0))
    assert stale_environment(installed, now=1000.0 + 7 * DAY_S) == []
    [note] = stale_environment(installed, now=1001.0 + 8 * DAY_S)
    assert "installed 8 days ago" in note
    assert "type: rm -rf .venv && make venv" in note
