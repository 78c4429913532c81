"""The labels of the designs: each beside its point, none on another."""

import re
from itertools import combinations
from math import dist
from pathlib import Path

import pytest

from distill.report.plot_macs_over_params import CLEAR, place_labels
from tests.cli.command_line import RunCli


def test_labels_do_not_overlap_points_or_labels() -> None:
    crowd = [(x / 2, 0.0) for x in range(20)]
    labels = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(crowd, place_labels(crowd), strict=True)]
    assert min(dist(a, b) for a, b in combinations(labels, 2)) >= CLEAR
    assert min(dist(label, point) for label in labels for point in crowd) >= CLEAR
    assert max(map(dist, crowd, labels)) < 8 * CLEAR


def test_label_is_to_the_right_if_it_fits() -> None:
    assert place_labels([(0.0, 0.0), (100.0, 0.0)]) == [(CLEAR, 0), (CLEAR, 0)]


@pytest.mark.long
@pytest.mark.parametrize("place", ["/proc/none/plot.svg", "file/plot.svg"])
def test_plot_that_cannot_be_written_is_one_message(place, tmp_path, run_cli: RunCli):
    Path("file").touch()
    result = run_cli("design", "--stages", "3", "--blocks", "1-2", "--plot", place)
    assert result.code == 1 and result.out == ""
    assert re.match(rf"--plot {place} cannot be written: .*\nFree some space", result.err), (
        result.err
    )


@pytest.mark.long
def test_a_full_disk_is_one_message(tmp_path, monkeypatch, run_cli: RunCli):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distill.report.plot_macs_over_params.write_bytes", full)
    result = run_cli("design", "--stages", "3", "--blocks", "1-2", "--plot", "a.svg")
    assert result.code == 1 and "a.svg cannot be written: No space left on device" in result.err
