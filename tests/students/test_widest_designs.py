"""The widest legal network of every depth, and the rules of the courses."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from distill.errors import UserError
from students import course_rules
from students.design import Design, widest
from students.widest_designs import widest_designs

ROWS = json.loads((Path(__file__).parent / "architectures.json").read_text())["rows"]
TABLE_8 = [row["spec"] for row in ROWS if row["name"].startswith("table8-")]


def test_widest_reproduces_table_8() -> None:
    """But for three, where the report has missed a wider legal network."""
    found = {}
    for spec in TABLE_8:
        n, blocks = spec["stages"], spec["blocks"]
        [row] = widest_designs(5_000_000, [n], [blocks], pool=spec["pool"])
        found[n, blocks] = row["width"] - spec["width"]
    missed = {depth: more for depth, more in found.items() if more}
    assert len(found) == 22 and missed == {(2, 1): 1, (2, 2): 1, (3, 1): 1}


@st.composite
def rule_sets(draw: st.DrawFn) -> dict[str, Any]:
    """What a course may fix of a design: everything but its width."""
    stages = draw(st.integers(1, 4))

    def each(values: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
        return st.lists(values, min_size=stages, max_size=stages)

    kernels = st.sampled_from([1, 3, 5])
    return {
        "stages": stages,
        "blocks": draw(st.integers(1, 3) | each(st.integers(1, 4))),
        "kernel": draw(kernels | each(kernels)),
        "skip_kernel": draw(kernels),
        "pool": draw(st.sampled_from(["global", 1, 2])),
        "stem_width": draw(st.none() | st.integers(1, 60)),
        "stem_stride": draw(st.sampled_from([1, 2])),
        "stage_strides": draw(st.none() | each(st.sampled_from([1, 2]))),
        "convs_per_block": draw(st.sampled_from([2, 3])),
        "projector_width": draw(st.none() | st.sampled_from([16, 64])),
    } | draw(st.sampled_from([{}, {"downsample": "pool", "skip_kernel": 1}]))


@pytest.mark.long
@settings(max_examples=1000, deadline=None)
@given(spec=rule_sets(), least_too_many=st.integers(1, 3_000))
def test_widest_matches_exhaustive_search(spec: dict[str, Any], least_too_many: int) -> None:
    try:
        legal = [
            width
            for width in range(1, 60)
            if Design.of(width=width, **spec).parameters < least_too_many
        ]
    except UserError:
        reject()  # a pool that does not fit after these strides
    assert widest(least_too_many, **spec) == max(legal, default=None)


def test_default_grid_takes_less_than_two_seconds() -> None:
    began = time.process_time()
    rows = widest_designs(5_000_000, range(2, 6), range(1, 8))
    assert time.process_time() - began < 2
    assert len(rows) == 28


def test_row_matches_its_design() -> None:
    [row] = widest_designs(5_000_000, [3], [4])
    design = Design.of(stages=3, blocks=4, width=row["width"])
    assert row == {
        "stages": 3,
        "blocks": 4,
        "width": 59,
        "parameters": design.parameters,
        "macs": design.macs,
        "macs_per_parameter": design.macs / design.parameters,
    }


def test_asymmetric_blocks_only_on_request() -> None:
    assert [row["blocks"] for row in widest_designs(10**6, [2], [1, 2])] == [1, 2]
    every = widest_designs(10**6, [2], [1, 2], asymmetric=True)
    assert [row["blocks"] for row in every] == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_some_pooled_stages_may_have_no_blocks() -> None:
    rows = widest_designs(10**5, [2], [0, 1], asymmetric=True, downsample="pool")
    assert [row["blocks"] for row in rows] == [[0, 1], [1, 0], [1, 1]]
    for row in rows:
        spec = {"stages": 2, "blocks": row["blocks"], "downsample": "pool"}
        assert Design.of(**spec, width=row["width"]).parameters == row["parameters"] < 10**5
        assert Design.of(**spec, width=row["width"] + 1).parameters >= 10**5


LEGAL = {"stages": 3, "blocks": [2, 1, 4], "width": 16}


@pytest.mark.parametrize(
    ("change", "activation", "clause"),
    [
        ({"width": None, "channels": [16, 32, 65]}, "relu", "its channels are 16-32-65"),
        ({"stem_width": 20}, "relu", "C_1 channels: it has 20, and C_1 is 16"),
        ({"stem_kernel": 5}, "relu", "F_1 wide: they are 5 wide, and F_1 is 3"),
        ({"stem_stride": 2}, "relu", "keeps 32x32"),
        ({"stem_pool": True}, "relu", "keeps 32x32"),
        ({"stem_norm": False}, "relu", "followed by bn and relu: it has no bn"),
        ({"stage_strides": [1, 1, 2]}, "relu", r"its strides are \[1, 1, 2\]"),
        ({"convs_per_block": 3}, "relu", "two convolutions: it has 3"),
        ({"downsample": "pool"}, "relu", "of stride 2: its layers begin with max pools"),
        ({"projector_width": 64}, "relu", "a projector is between them"),
        ({}, "silu", "end in relu: they end in silu"),
        ({"width": 200}, "relu", "fewer than 5,000,000 parameters: it has"),
    ],
)
def test_each_clause_of_2022_is_reported(
    change: dict[str, Any], activation: str, clause: str
) -> None:
    course = course_rules.rules_by_name("nyu2022")
    assert course_rules.broken_clauses(course, Design.of(**LEGAL), "relu") == []
    [fault] = course_rules.broken_clauses(course, Design.of(**LEGAL | change), activation)
    assert clause.replace("\\", "") in fault
    if "parameters" not in clause:
        assert (
            course_rules.broken_clauses(
                course_rules.rules_by_name("nyu2025"), Design.of(**LEGAL | change), activation
            )
            == []
        )


def test_2025_allows_a_network_of_exactly_the_budget() -> None:
    design = Design.of(**LEGAL)
    for name, legal in (("nyu2022", False), ("nyu2025", True)):
        faults = course_rules.broken_clauses(
            course_rules.rules_by_name(name), design, "relu", budget=design.parameters
        )
        assert (not faults) is legal
    exactly = Design.of(stages=1, blocks=1, width=9).parameters
    [row] = widest_designs(course_rules.rules_by_name("nyu2025").exclusive_limit(exactly), [1], [1])
    assert row["width"] == 9


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(UserError, match="--rules nyu1999 is unknown; allowed: nyu2022, nyu2025"):
        course_rules.rules_by_name("nyu1999")


def test_default_grid_imports_no_torch() -> None:
    code = (
        "import sys; from students.widest_designs import widest_designs;"
        "assert len(widest_designs(5_000_000, range(2, 6), range(1, 8))) == 28;"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
