"""Group runs by settings, and test differences between groups with `distill.statistics`."""

from dataclasses import replace

import numpy as np
import pytest

from distill import statistics
from distill.runs.read_predictions import Predictions
from distill.runs.read_run_folder import RunRecord
from distill.runs.seed_groups import group_difference, group_differences, groups
from tests.runs.records import ALONE, LABELS, record


def seeded(name: str, rights: list[int], *overrides: str) -> list[RunRecord]:
    return [
        record(f"{name}-{seed}", right, f"train.seed={seed}", f"data.seed={seed}", *overrides)
        for seed, right in enumerate(rights)
    ]


def test_seeds_and_logging_options_do_not_split_groups() -> None:
    habits = ("train.log_every=7", "train.keep_epochs=1", "train.validate_both=true")
    runs = [
        record("kd-0", 15),
        record("kd-1", 16, "train.seed=1", *habits),
        record("alone-0", 12, *ALONE),
        record("alone-1", 12, *ALONE, "data.seed=1", "teacher.depth=16"),
        record("wide", 17, "student.width=8"),
    ]
    found = groups(runs)
    assert [(g.name, [r.name for r in g.records]) for g in found] == [
        ("kd", ["kd-0", "kd-1"]),
        ("alone", ["alone-0", "alone-1"]),
        ("wide", ["wide"]),
    ]


def test_other_images_are_another_group() -> None:
    one, two = record("a-0", 15), record("a-1", 15, "train.seed=1")
    two = replace(two, result={**two.result, "data": {"fingerprint": "g"}})
    assert [group.name for group in groups([one, two])] == ["a-0", "a-1"]


def test_a_seed_does_not_count_twice() -> None:
    (group,) = groups(
        [record("kd-0", 15), record("kd-0-again", 15), record("kd-1", 13, "train.seed=1")]
    )
    assert [r.name for r in group.duplicates] == ["kd-0-again"]
    assert group.test_accuracies == [0.75, 0.65]


def test_copy_with_another_seed_is_no_run() -> None:
    first, copied = record("kd-0", 15), record("kd-1", 15, "train.seed=1")
    copied = replace(copied, result={**copied.result, "weights": first.result["weights"]})
    (group,) = groups([first, copied])
    assert [r.name for r in group.duplicates] == ["kd-1"]
    assert group.test_accuracies == [0.75]


def taught_by(known: RunRecord, fingerprint: str) -> RunRecord:
    """The record with the fingerprint of its teacher's weights."""
    teacher = known.result["teacher"] | {"runs": ["t"], "fingerprint": fingerprint}
    return replace(known, result={**known.result, "teacher": teacher})


def test_students_of_different_teachers_are_no_group() -> None:
    a, b = record("kd-0", 15), record("kd-1", 16, "train.seed=1")
    unknown = record("kd-2", 17, "train.seed=2")
    assert len(groups([taught_by(a, "x"), taught_by(b, "x"), unknown])) == 1
    one, other = groups([unknown, taught_by(a, "x"), taught_by(b, "y")])
    assert (one.test_accuracies, other.test_accuracies) == ([0.85, 0.75], [0.8])


def test_groups_that_begin_alike_are_numbered() -> None:
    runs = [record("run-0", 15), record("run-1", 15, *ALONE)]
    runs += [record("run-2", 15, "train.seed=1"), record("run-3", 15, *ALONE, "train.seed=1")]
    assert [group.name for group in groups(runs)] == ["run (1)", "run (2)"]


def test_groups_with_common_seeds_are_paired() -> None:
    a, b = seeded("kd", [15, 16, 18]), seeded("alone", [12, 15, 14], *ALONE)
    (found,) = group_differences(groups([*a, *reversed(b)]))
    known, p = statistics.paired_difference([0.75, 0.8, 0.9], [0.6, 0.75, 0.7])
    assert (found.difference, found.interval, found.p) == (known.mean, known.interval, p)
    assert found.method == "Student's t on 3 common seeds"


def test_two_single_runs_are_compared_image_by_image() -> None:
    (found,) = group_differences(groups([record("a", 15), record("b", 9, "student.width=8")]))
    assert found.p == statistics.mcnemar(6, 0) and found.difference == pytest.approx(0.3)
    assert found.method.endswith("correct in the first only 6 images, in the second only 0")


@pytest.mark.parametrize(
    ("b", "why"),
    [
        (record("b", 9, "student.width=8", "train.seed=5", finished=False), "predictions of one"),
        (replace(record("b", 9, "student.width=8"), predictions=None), "predictions of one"),
        (
            replace(
                record("b", 9, "student.width=8"),
                predictions=Predictions(
                    np.eye(4)[LABELS], LABELS[::-1], np.array([]), np.array([])
                ),
            ),
            "tested on different images",
        ),
    ],
)
def test_incomparable_groups_are_explained(b: RunRecord, why: str) -> None:
    one, other = groups([record("a", 15), b])
    found = group_difference(one, other)
    assert why in found.method and found.p is None and found.difference is None


def on(known: RunRecord, test: str) -> RunRecord:
    """The record with the fingerprint of a test split."""
    data = known.result["data"] | {"test_fingerprint": test}
    return replace(known, result={**known.result, "data": data})


def test_seeds_of_different_test_splits_are_no_group() -> None:
    a, b = record("kd-0", 15, "train.seed=0"), record("kd-1", 16, "train.seed=1")
    assert len(groups([on(a, "x"), on(b, "x")])) == len(groups([on(a, "x"), b])) == 1
    one, other = groups([on(a, "x"), on(b, "y")])
    assert (one.test_accuracies, other.test_accuracies) == ([0.75], [0.8])
    alone = record("alone-0", 12, *ALONE, "train.seed=0")
    one, other = groups([on(a, "x"), on(alone, "y")])
    assert group_difference(one, other).method == "they were tested on different images"


def test_groups_without_a_common_seed_are_not_paired() -> None:
    a, b = seeded("kd", [15, 16]), [record("b", 9, *ALONE, "train.seed=7")]
    one, other = groups([*a, *b])
    assert group_difference(one, other).method == "no common seeds, so no pairs"
