"""docs/methods.md: the cost of every loss term, counted again."""

import pytest
import torch

from distill.recipe.loss_schema import Losses
from docs import methods_table as page

pytestmark = pytest.mark.long


def test_page_has_the_costs_of_every_term() -> None:
    """Parameters, memory, paper and test of every term; only the times are this machine's."""
    assert page.stale(page.PAGE.read_text()) == [], "stale; type: python -m docs.methods_table"
    rows = page._cells(page.PAGE.read_text())
    assert len(rows) == len(Losses.model_fields)
    assert all(float(row[5]) > 0 and row[6].endswith("%") for row in rows)


def test_changed_cost_is_reported() -> None:
    stale = page.PAGE.read_text().replace("| [`sp`]", "| [`sq`]")
    assert page.stale(stale) == ["sp"]


def test_peak_counts_bytes_alive_at_once() -> None:
    memory = page.Held()
    mine = torch.empty(100)
    memory.ignore([mine])
    with memory:
        a = mine + 1  # 400 bytes
        b = a * 2  # 400 more
        del a
        c = b + 1
        view = c[:10]
        assert memory.now == 800
    assert memory.peak == 800 and view.numel() == 10
