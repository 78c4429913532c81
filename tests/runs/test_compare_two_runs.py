"""Two runs on the same images, counted by hand."""

import json
import re
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import cli
from distill.errors import UserError
from distill.metrics import measures
from distill.recipe import describe_network, recipes
from distill.runs.compare_two_runs import Comparison, compare
from distill.runs.read_predictions import Predictions
from distill.runs.run_folder import RunFolder, write_json, write_text
from distill.statistics import wilson
from distill.terminal.compare_table import comparison_tables

LR = recipes.load("tiny").recipe.optim.lr
LABELS = [0, 0, 0, 1, 1, 1, 1, 2]
#         A     A  B           both right: 3 and 5; the last two are wrong in both
ANSWERS_A = [0, 1, 1, 1, 0, 1, 0, 1]
ANSWERS_B = [1, 0, 0, 1, 1, 1, 0, 0]


def finished(
    path: Path, classes: list[int], *overrides: str, labels: list[int] = LABELS, **changes: object
) -> RunFolder:
    """A run that predicted these classes, each with logit 2 against 0."""
    run, recipe = RunFolder(path), recipes.load("tiny", overrides).recipe
    write_text(run.recipe, recipes.dumps(recipe))
    class_names: Any = changes.get("class_names", ["cat", "dog", "eel"])
    logits = 2 * np.eye(len(class_names), dtype=np.float32)[classes]
    measured = measures(logits, np.array(labels))
    table = recipe.teacher if changes.get("role") == "teacher" else recipe.student
    assert table is not None
    described = describe_network.describe(table, len(class_names))
    assert described is not None
    result: dict[str, Any] = {
        "role": "student", "recipe": "tiny", "network": describe_network.summary(table),
        "parameters": described.parameters, "class_names": class_names,
        "data": {"fingerprint": "f00d", "test_fingerprint": "7e57"},
        "metrics": {f"{name}/test": measured[name] for name in ("top1", "ece")} | {"top1/val": 0.6},
        "elapsed_s": 61.0, "weights": path.name,
    } | changes  # fmt: skip
    write_json(run.result_file, result)
    np.savez(run.evaluation, logits=logits, labels=np.array(labels))
    return run


def two(tmp_path: Path) -> Comparison:
    a, b = finished(tmp_path / "a", ANSWERS_A), finished(tmp_path / "b", ANSWERS_B, "optim.lr=0.7")
    return compare(a.path, b.path)


def test_counted_by_hand(tmp_path: Path) -> None:
    it = two(tmp_path)
    assert (it.n, it.only_a, it.only_b, it.both_right, it.both_wrong) == (8, 1, 3, 2, 2)
    assert it.difference == pytest.approx(2 / 8)
    assert (it.a.top1_test, it.b.top1_test) == (3 / 8, 5 / 8)
    assert it.a.top1_test_interval == wilson(3, 8)
    assert it.agreement == 3 / 8
    # The exact test by its definition: 1 or fewer, or 3 or more, of 4 fair coins.
    assert it.p == pytest.approx((1 + 4 + 4 + 1) / 16)
    counts = [(c.name, c.n, c.right_a, c.right_b, c.only_a, c.only_b) for c in it.classes]
    assert counts == [("cat", 3, 1, 2, 1, 2), ("dog", 4, 2, 3, 0, 1), ("eel", 1, 0, 0, 0, 0)]
    assert it.recipes == (f"optim.lr: {LR} -> 0.7",)
    low, high = it.difference_interval
    assert -0.5 < low < 2 / 8 < high < 1


def test_predictions_computed_again_replace_saved_ones(tmp_path: Path) -> None:
    a, b = finished(tmp_path / "a", ANSWERS_A), finished(tmp_path / "b", ANSWERS_B)
    again = Predictions(np.eye(3, dtype=np.float32)[LABELS], np.array(LABELS))
    it = compare(a.path, b.path, {b.path: again})
    assert (it.a.top1_test, it.b.top1_test, it.difference) == (3 / 8, 1, 5 / 8)


def test_nll_is_that_of_the_logits(tmp_path: Path) -> None:
    right, wrong = (np.log(np.exp(2) + 2) - logit for logit in (2, 0))
    it = two(tmp_path)
    assert it.a.nll_test == pytest.approx((3 * right + 5 * wrong) / 8)
    assert it.a.nll_test_interval[0] < it.a.nll_test < it.a.nll_test_interval[1]


def test_real_predictions_give_real_figures(distilled, teacher: Path) -> None:
    run, metrics = distilled[0], distilled[0].result()["metrics"]
    it = compare(teacher, run.path)
    assert it.b.top1_test == metrics["top1/test"]
    assert it.b.nll_test == pytest.approx(metrics["nll/test"], abs=1e-6)
    assert sum(row.right_b for row in it.classes) == round(2000 * it.b.top1_test)


# What it says


def many(tmp_path: Path, better: int) -> Comparison:
    """B right on `better` of 400 images more than A; 20 more differ either way."""
    n = 400
    labels = [0] * n
    only_a, only_b = range(10), range(10, 20 + better)
    ours = [0 if i in only_a else 1 if i in only_b else 0 for i in range(n)]
    theirs = [1 if i in only_a else 0 for i in range(n)]
    a = finished(tmp_path / "a", ours, labels=labels)
    return compare(a.path, finished(tmp_path / "b", theirs, labels=labels).path)


def test_a_difference_that_is_shown(tmp_path: Path) -> None:
    it = many(tmp_path, better=40)
    assert it.p == pytest.approx(stats.binomtest(10, 60).pvalue)
    low, high = (f"{100 * end:+.2f}".replace("-", "−") for end in it.difference_interval)
    assert it.says == (
        f"Shown: on images like these 400 the network of {tmp_path / 'b'} is correct more often "
        f"than that of {tmp_path / 'a'}; B − A is between {low} and {high} points. This "
        "does not show that one recipe is better. One run of each shows nothing about other seeds; "
        "train several of each for that."
    )


def test_a_difference_that_is_not(tmp_path: Path) -> None:
    it = many(tmp_path, better=2)
    assert it.p > 0.05
    assert it.says.startswith("No difference is shown: with these 400 images B − A may be anything")


@pytest.mark.long
def test_the_same_weights_and_other_images(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", ANSWERS_A)
    again = finished(tmp_path / "b", ANSWERS_A, weights="a")
    assert compare(a.path, again.path).says == (
        "Both have the same weights: there is nothing to compare."
    )
    elsewhere = {"fingerprint": "beef", "test_fingerprint": "7e57"}
    other = finished(tmp_path / "c", ANSWERS_B, data=elsewhere)
    sentence = compare(a.path, other.path).says
    assert sentence.endswith("Their training images differ; their test images are the same.")


@pytest.mark.long
def test_results_of_earlier_version_are_compared_with_note(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", ANSWERS_A)
    b = finished(tmp_path / "b", ANSWERS_B, data={"fingerprint": "f00d"})
    it = compare(a.path, b.path)
    assert it.n == 8
    assert it.says.endswith(
        "1 of 2 results was written by an earlier version and has no fingerprint of the test "
        "split: it is unknown whether all were tested on the same images."
    )
    other = finished(tmp_path / "c", ANSWERS_B, data={"fingerprint": "beef"})
    assert (
        "Their training images differ, and their test images may differ too"
        in compare(a.path, other.path).says
    )


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits(tmp_path: Path, width: int) -> None:
    out = StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(comparison_tables(two(tmp_path)), highlight=False)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert re.search(r"^top1/test +37.50 % \[13.68, 69.43\] +62.50 % \[30.57, 86.32\]$", text, re.M)
    assert re.search(r"^only one right +A 1, B 3 of 8 images; McNemar's p = 0.62$", text, re.M)
    assert re.search(r"^cat +3 +1 +2 +\+1 +1 +2$", text, re.M)
    assert re.search(rf"^  optim.lr: {LR} -> 0.7$", text, re.M)


# What cannot be compared


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"labels": [0] * 8}, "measured on other labels, 5 of 8, or the same in another order"),
        ({"class_names": ["a", "b", "c"]}, "measured on other classes: cat, dog, eel / a, b, c"),
        (
            {"class_names": ["eel", *(f"class {i}" for i in range(99))]},
            "other classes: 3 classes, among them cat, dog / 100 classes, among them class 0, "
            "class 1, class 2, class 3, class 4, class 5, class 6, class 7, class 8, class 9 and "
            "89 more.\n",
        ),
    ],
)
def test_other_images_are_refused(tmp_path: Path, changes: dict, found: str) -> None:
    a = finished(tmp_path / "a", ANSWERS_A)
    b = finished(tmp_path / "b", ANSWERS_B, **changes)
    with pytest.raises(UserError, match=found):
        compare(a.path, b.path)


def test_another_test_split_of_same_labels_is_refused(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", ANSWERS_A)
    replaced = {"fingerprint": "f00d", "test_fingerprint": "0dd"}
    b = finished(tmp_path / "b", ANSWERS_B, data=replaced)
    with pytest.raises(UserError, match="measured on other images: their test split differs"):
        compare(a.path, b.path)


def test_fewer_images_are_refused(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", ANSWERS_A)
    b = finished(tmp_path / "b", ANSWERS_B[:5], labels=LABELS[:5])
    with pytest.raises(UserError, match="were measured on 8 / 5 images"):
        compare(a.path, b.path)


def test_lost_files_are_named(tmp_path: Path) -> None:
    a, b = finished(tmp_path / "a", ANSWERS_A), finished(tmp_path / "b", ANSWERS_B)
    b.evaluation.write_bytes(b"damaged")
    with pytest.raises(UserError, match="b/evaluation.npz cannot be read"):
        compare(a.path, b.path)
    b.evaluation.unlink()
    with pytest.raises(
        UserError, match="b/evaluation.npz is missing: a run cannot be compared without"
    ):
        compare(a.path, b.path)
    finished(tmp_path / "b", ANSWERS_B)
    write_json(b.result_file, {k: v for k, v in b.result().items() if k != "weights"})
    with pytest.raises(UserError, match="has no 'weights': another version wrote it"):
        compare(a.path, b.path)
    b.result_file.unlink()
    with pytest.raises(UserError, match="b is not finished"):
        compare(a.path, b.path)


@pytest.mark.long
def test_json_has_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    it = two(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["cli.py", "compare", *map(str, (tmp_path / "a", tmp_path / "b")), "--json"]
    )
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    printed = json.loads(capsys.readouterr().out)
    assert (printed["p"], printed["only_b"], printed["says"]) == (it.p, 3, it.says)
    assert printed["classes"][0]["name"] == "cat"
    assert printed["a"]["top1_test_interval"] == list(wilson(3, 8))


def test_teacher_of_a_student_is_its_run(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", ANSWERS_A, "teacher.depth=16", 'teacher.runs=["x"]')
    b = finished(tmp_path / "b", ANSWERS_A, 'teacher.runs=["y"]', "teacher.mirror=true")
    assert compare(a.path, b.path).recipes == (
        'teacher.runs: ["x"] -> ["y"]',
        "teacher.mirror: false -> true",
    )


def test_keys_not_read_are_no_difference(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", ANSWERS_A, 'teacher.runs=["b"]')
    b = finished(tmp_path / "b", ANSWERS_A, "teacher.network=resnet20", role="teacher")
    lines = [line for line in compare(a.path, b.path).recipes if line.startswith("teacher.")]
    assert 'teacher.network: absent -> "resnet20"' in lines
    assert 'teacher.runs: ["b"] -> []' in lines
    assert not [line for line in lines if line.startswith(("teacher.depth", "teacher.widen"))]
