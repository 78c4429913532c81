"""A download as a person sees it, and as a log keeps it."""

import io

import pytest
from rich.console import Console

from distill.terminal import download_progress
from distill.terminal.download_progress import DownloadDisplay


def test_log_has_a_line_per_quarter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(download_progress.time, "monotonic", lambda: next(clock))  # type: ignore[attr-defined]
    console = Console(file=io.StringIO(), width=200)
    with DownloadDisplay(console) as display:
        for done in (0, 10, 30, 40, 100):
            display("downloading a.tar.gz", done * 1_000_000, 100_000_000)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "downloading a.tar.gz  30.0 of 100.0 MB, 1.50 MB/s, 0:47 left",
        "downloading a.tar.gz  100.0 of 100.0 MB, 2.50 MB/s, 0:00 left",
    ]


def test_slow_download_reports_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 30.0, 61.0])
    monkeypatch.setattr(download_progress.time, "monotonic", lambda: next(clock))  # type: ignore[attr-defined]
    console = Console(file=io.StringIO(), width=200)
    with DownloadDisplay(console) as display:
        for done in (0, 1, 2):
            display("downloading", done * 1_000_000, 100_000_000)
    [line] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line == "downloading  2.0 of 100.0 MB, 0.03 MB/s, 49:49 left"


def test_a_terminal_has_a_bar_that_goes() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with DownloadDisplay(console) as display:
        display("downloading a.tar.gz", 25_000_000, 100_000_000)
        display._bars.refresh()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "downloading a.tar.gz" in shown and "25.0/100.0 MB" in shown
