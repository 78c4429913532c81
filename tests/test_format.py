"""Numbers, times and lists as people read them."""

import math

import pytest

from distill.format import (
    bracketed,
    change_of_ece,
    counted,
    describe_class_difference,
    duration,
    interval_text,
    join_shortened,
    nats,
    p_equation,
    p_value,
    percent,
    percent_number,
    points,
    rounded_time,
    shorten,
    time_with_range,
)
from distill.runs.check_runs_match import missing_test_split_note as unnamed
from distill.teacher.selection import _count_problems
from distill.training.verify_cache import CacheCheck
from tests.recipe.test_recipes import load

HUNDRED = [f"class {i}" for i in range(100)]


def test_a_number_and_its_noun() -> None:
    assert [counted(n, "design") for n in (0, 1, 1234)] == [
        "0 designs",
        "1 design",
        "1,234 designs",
    ]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_a_long_list_is_cut() -> None:
    assert join_shortened(HUNDRED[:10]) == ", ".join(HUNDRED[:10])
    assert join_shortened(HUNDRED) == ", ".join(HUNDRED[:10]) + " and 90 more"


def test_percentages_have_two_decimals() -> None:
    assert [percent(x) for x in (0.71166, 1.0, 0.0, None, math.nan)] == [
        "71.17 %", "100.00 %", "0.00 %", "–", "–",
    ]  # fmt: skip


def test_durations_are_hours_minutes_and_seconds() -> None:
    seconds = (0, 59.6, 151, 3723, 90_000, None, math.inf)
    assert [duration(s) for s in seconds] == [
        "0:00", "1:00", "2:31", "1:02:03", "25:00:00", "–", "–",
    ]  # fmt: skip


def test_differences_are_signed_percentage_points() -> None:
    assert [points(x) for x in (0.0123, -0.0123, 0.0)] == ["+1.23", "−1.23", "+0.00"]


def test_p_values_have_two_digits() -> None:
    values = (1.0, 0.4, 0.0412, 0.00012, 2e-7)
    assert [p_value(p) for p in values] == ["1", "0.4", "0.041", "0.00012", "< 0.0001"]
    assert [p_equation(p) for p in (0.0412, 2e-7)] == ["p = 0.041", "p < 0.0001"]


def test_an_interval_names_its_unit_once() -> None:
    assert interval_text((0.7121, 0.7297)) == "[71.21, 72.97] %"
    assert interval_text((0.7548, 0.7956), nats) == "[0.7548, 0.7956] nats"
    assert interval_text(None) == "–"
    assert bracketed((0.7121, 0.7297), percent_number) == "[71.21, 72.97]"
    assert bracketed((-0.01, 0.02), points) == "[−1.00, +2.00]"


def test_a_long_text_loses_its_middle() -> None:
    names = ["seeds-kd/seed-2", "seeds-kd/seed-12"]
    assert [shorten(name, 15) for name in names] == ["seeds-kd/seed-2", "seeds-k…seed-12"]
    assert [shorten("abcdef", width) for width in (1, 2, 3)] == ["…", "…f", "a…f"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((70.0, 60.0, 80.5), "70 s (60 to 80)"),
        ((90.0, 76.0, 104.0), "1.5 min (1.3 to 1.7)"),
        ((2 * 3600.0, 1.7 * 3600, 2.4 * 3600), "2.0 h (1.7 to 2.4)"),
        ((30 * 86_400.0, 20 * 86_400, 1_200 * 86_400), "30 days (20 to 1,200)"),
    ],
)
def test_a_time_and_its_range_share_a_unit(seconds: tuple[float, float, float], text: str) -> None:
    assert time_with_range(*seconds) == text


def test_a_rounded_time_has_two_or_three_digits() -> None:
    assert [rounded_time(s) for s in (99, 100, 1740, 8640)] == [
        "99 s",
        "1.7 min",
        "29 min",
        "2.4 h",
    ]


def test_long_lists_of_classes_show_what_other_lacks() -> None:
    assert describe_class_difference(["a", "b"], ["b", "c"]) == ("a, b", "b, c")
    other = [*HUNDRED[:60], "zebra", *HUNDRED[61:]]
    ours, theirs = describe_class_difference(HUNDRED, other)
    assert ours == "100 classes, among them class 60"
    assert theirs == "100 classes, among them zebra"
    same = describe_class_difference(HUNDRED, HUNDRED[::-1])
    assert same == ("100 classes, none that the other lacks",) * 2


def test_difference_of_classes_is_one_line() -> None:
    assert describe_class_difference(["a\nb"], ["c"]) == (r"a\nb", "c")
    assert describe_class_difference(["a\nb", *HUNDRED], HUNDRED)[0].endswith(r"them a\nb")


def test_one_of_something_is_singular() -> None:
    """In messages where the number may be one."""
    assert str(CacheCheck(1)).startswith("1 view;") and str(CacheCheck(2)).startswith("2 views;")
    [note] = unnamed([{"data": {}}, {"data": {"test_fingerprint": "f"}}])
    assert note.startswith("1 of 2 results was written by an earlier version and has no")
    [note] = unnamed([{"data": {}}, {"data": {}}])
    assert note.startswith("2 of 2 results were written by an earlier version and have no")
    recipe = load("tiny", ["teacher.weights=[1]"]).recipe
    assert "has 1 weight for 2 teachers" in next(_count_problems(recipe, 2))


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (0.0144, 0.0109, "lowers the calibration error from 1.44 % to 1.09 %"),
        (
            0.0109,
            0.0144,
            "raises the calibration error from 1.09 % to 1.44 %, so it is no improvement",
        ),
        (0.01091, 0.01089, "leaves the calibration error at 1.09 %"),
    ],
)
def test_calibration_that_got_worse_says_so(before: float, after: float, text: str) -> None:
    assert change_of_ece(before, after) == text
