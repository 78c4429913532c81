"""The page of several runs: groups, tests between them, curves over each other."""

from dataclasses import replace

import numpy as np
import pytest

from distill.report import comparison
from distill.report.curves_by_group import mean_line, overlay_curves
from distill.report.page import FigureBlock, Table
from distill.runs.epoch_series import Line
from distill.runs.read_run_folder import RunRecord
from distill.runs.run_folder import FINISHED_EARLY
from distill.runs.seed_groups import groups
from tests.report.test_run_report import words
from tests.runs.records import ALONE, averaged_alone, curve_of, record

SEEDS = [("train.seed=0", "data.seed=0"), ("train.seed=1", "data.seed=1")]
KD = [record(f"kd-{k}", right, *SEEDS[k]) for k, right in enumerate((16, 18))]
LONE = [record(f"alone-{k}", right, *SEEDS[k], *ALONE) for k, right in enumerate((12, 13))]


def grids(records: list[RunRecord]) -> dict[str, list[list[str]]]:
    made = comparison.page(records)
    blocks = [block for section in made.sections for block in section.blocks]
    return {block.grid.name: block.grid.cells for block in blocks if isinstance(block, Table)}


def text(records: list[RunRecord]) -> str:
    return words(comparison.page(records))


def test_groups_have_mean_and_spread_over_seeds() -> None:
    kd, alone = grids([*KD, *LONE])["groups"]
    # mean 0.85, std 0.1/√2; mean 0.625, std 0.05/√2
    assert kd[:3] == ["kd", "2", "85.00 ± 7.07 %"]
    assert alone[:3] == ["alone", "2", "62.50 ± 3.54 %"]


def test_headings_say_what_is_shown() -> None:
    made = comparison.page([*KD, *LONE])
    tables = [b.grid for s in made.sections for b in s.blocks if isinstance(b, Table)]
    latex = {grid.name: grid.latex() for grid in tables}
    assert "test accuracy (mean $\\pm$ std over seeds)" in latex["groups"].replace("±", "$\\pm$")
    assert "difference (points) & 95 \\% interval (points)" in latex["between"]
    assert "10.00" in latex["groups"]  # ECE of 0.1, in percent
    assert "[" in grids([*KD, *LONE])["between"][0][3]
    csv = {grid.name: grid.csv().splitlines()[0] for grid in tables}
    assert "test accuracy mean (fraction)" in csv["groups"]


def test_single_run_has_the_interval_of_its_images() -> None:
    kd, alone = grids([KD[0], *LONE])["groups"]
    assert kd[3] == "[58.40, 91.93] %"  # Wilson's of 16 in 20
    assert alone[:2] == ["alone", "2"] and alone[3] != kd[3]


def test_between_them_seeds_are_paired() -> None:
    ((first, second, difference, _, _, how),) = grids([*KD, *LONE])["between"]
    assert (first, second, difference) == ("kd", "alone", "+22.50")
    assert how == "Student's t on 2 common seeds"


def test_every_run_has_line_with_its_own_interval() -> None:
    rows = grids([*KD, *LONE])["runs"]
    assert [row[0] for row in rows] == ["kd-0", "kd-1", "alone-0", "alone-1"]
    assert rows[1][2:7] == ["1", "1", "1", "50.00 %", "90.00 %"]
    assert rows[0][7] == "[58.40, 91.93] %"  # Wilson's of 16 in 20


def test_groups_list_recipe_network_teacher_and_data() -> None:
    teacher = {**KD[0].result["teacher"], "runs": ["runs/big"]}
    taught = replace(
        KD[0],
        result={**KD[0].result, "teacher": teacher},
        environment={"packages": {"torch": "2.9.0"}},
    )
    data = ("synthetic", "45")
    assert grids([taught, *LONE])["trainings"] == [
        ["kd-0", "tiny", "ResNet [1, 1] 4-8", "big", *data, "5", "cpu", "2.9.0"],
        ["alone", "tiny", "ResNet [1, 1] 4-8", "none", *data, "5", "cpu", "–"],
    ]


def test_run_that_was_finished_early_is_named() -> None:
    steps = {"epochs": 1, "planned_epochs": 3, "steps": 21, "planned_steps": 45}
    early = replace(KD[0], result={**KD[0].result, FINISHED_EARLY: steps})
    end = "after 1 of 3 planned epochs (step 21 of 45)"
    assert f"kd-0 was finished early, {end}." in text([early, *LONE])
    assert grids([early, *LONE])["trainings"][0][6] == "1"
    assert "finished early" not in text([KD[0], *LONE])


def test_differences_are_listed_key_by_key() -> None:
    rows = dict(grids([*KD, *LONE])["differences_1"])
    assert rows["loss.hard.weight"] == "0.1 → 1.0"
    assert rows["loss.kd"].startswith("{weight = 0.9,") and rows["loss.kd"].endswith("} → absent")
    assert not [key for key in rows if "seed" in key]


def test_differences_leave_out_teacher_keys_not_read() -> None:
    students = [
        record("a", 12, 'teacher.runs=["x"]'),
        record("b", 13, 'teacher.runs=["y"]', "teacher.depth=16", "optim.lr=0.3"),
    ]
    keys = {key for key, _ in grids(students)["differences_1"]}
    assert keys == {"teacher.runs", "optim.lr"}


def test_single_runs_are_compared_by_image() -> None:
    ((*_, how),) = grids([KD[0], LONE[0]])["between"]
    assert (
        how
        == "McNemar's test, one run each: correct in the first only 4 images, in the second only 0"
    )


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([*KD, record("late", 9, finished=False)], "Not finished, and so without test results"),
        ([*KD, record("kd-0-again", 16)], "kd already has the seeds or the weights of kd-0-again"),
        (KD, "There is only one group."),
        ([replace(KD[0], result={}), replace(LONE[0], result={})], "No run is finished."),
        (
            [KD[0], replace(LONE[0], result=LONE[0].result | {"data": {"fingerprint": "g"}})],
            "trained on different images",
        ),
        (
            [replace(KD[0], test_curve=curve_of(0.5)), LONE[0]],
            "computed after the runs from saved weights",
        ),
        (
            [KD[0], replace(KD[0], result=KD[0].result | {"data": {"fingerprint": "g"}})],
            "differ in data, teacher or role",
        ),
        ([replace(run, events=()) for run in (KD[0], LONE[0])], "No epoch of these runs"),
    ],
)
def test_warning_about_the_comparison_is_shown(records: list[RunRecord], message: str) -> None:
    assert message in text(records)


def test_accuracy_without_predictions_is_not_verified() -> None:
    assert "not verified" not in text([KD[0], LONE[0]])
    note = "The test accuracy of alone-0 is not verified: evaluation.npz is missing or damaged."
    assert note in text([KD[0], replace(LONE[0], predictions=None)])


def test_curves_of_runs_whose_average_alone_was_measured() -> None:
    """Beside a run that measured its network too: of both the average's."""
    _, held_out, *_ = overlay_curves(groups([KD[0], averaged_alone(KD[1])]))
    assert isinstance(held_out, FigureBlock) and held_out.name == "loss"
    lines = [list(line.get_ydata()) for line in held_out.figure.axes[0].lines]  # type: ignore[arg-type]
    assert lines == [[1.4, 1.4]] * 3, "one a run, and their mean"


def test_mean_curve_covers_common_epochs() -> None:
    short, long = (
        Line(np.arange(n) + 1.0, np.arange(n) * scale) for n, scale in ((2, 1.0), (3, 3.0))
    )
    mean = mean_line([short, long])
    assert mean.x.tolist() == [1, 2] and mean.y.tolist() == [0, 2]
