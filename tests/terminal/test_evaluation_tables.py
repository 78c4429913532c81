"""What a person reads of an evaluation, on a narrow and a wide terminal."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from distill.terminal.evaluation_tables import evaluation_tables, mcnemar_text

HEADLINE: dict[str, Any] = {
    "top1": 0.721, "top1_interval": [0.7121, 0.7297],
    "top5": 0.9846, "top5_interval": [0.982, 0.9868],
    "nll": 0.7749, "nll_interval": [0.7548, 0.7956],
    "ece": 0.0192, "ece_interval": [0.0152, 0.0287],
}  # fmt: skip
CLASSES = ["airplane", "automobile", "a class with a name that is very long indeed"]
FIGURES: dict[str, Any] = HEADLINE | {
    "run": "runs/real/kd-0", "role": "student", "network": "ResNet [4, 4, 3] 64-128-256",
    "parameters": 4_697_162, "macs": 798_689_792, "data": "cifar10", "n": 10_000,
    "temperature": 1.102, "nll_calibrated": 0.7739, "ece_calibrated": 0.0087,
    "teacher_agreement": 0.8352, "teacher_kl": 0.144,
    "per_class": [
        {"name": CLASSES[0], "n": 1000, "accuracy": 0.716, "interval": [0.687, 0.743]},
        {"name": CLASSES[1], "n": 1000, "accuracy": 0.904, "interval": [0.884, 0.921]},
        {"name": CLASSES[2], "n": 0, "accuracy": None, "interval": None},
    ],
    "confusion": [[716, 102, 182], [96, 904, 0], [0, 0, 0]],
    "absent": {},
}  # fmt: skip
MEASURED: dict[str, Any] = {
    "against": HEADLINE
    | {"run": "runs/real/alone-0", "top1": 0.6512, "top1_interval": [0.6418, 0.6605]}
    | {"only_a": 1220, "only_b": 522, "both": 5990, "p": 1e-60, "better": "a"},
    "mirror": HEADLINE | {"top1": 0.7274},
    "test_time_augmentation": HEADLINE | {"views": 6, "top1": 0.7311},
    "latency_ms": {
        "batch_1": 1.781, "batch_128": 47.21, "device": "cpu", "threads": 1, "precision": "float32",
    },
    "robustness": {
        "n": 500, "clean": 0.73, "mean_error": 0.4, "left_out": ["frost"], "seed": 0,
        "severities": [1, 2, 3, 4, 5],
        "accuracy": {"gaussian_noise": [0.7, 0.6, 0.6, 0.6, 0.5],
                     "elastic_transform": [0.7, 0.6, 0.6, 0.6, 0.5]},
    },
}  # fmt: skip


def lines(figures: dict[str, Any], width: int = 80) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(evaluation_tables(figures))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def words(figures: dict[str, Any]) -> str:
    return " ".join(" ".join(lines(figures)).split())


@pytest.mark.parametrize("width", [80, 100])
def test_everything_fits_and_nothing_is_cut(width: int) -> None:
    found = lines(FIGURES | MEASURED, width)
    assert max(map(len, found)) <= width
    assert not any("…" in line for line in found)
    assert set(" ".join(CLASSES).split()) <= set(" ".join(found).split())


def test_the_headline_comes_first_with_its_intervals() -> None:
    found = words(FIGURES)
    assert found.startswith("run runs/real/kd-0, student network ResNet")
    for part in (
        "4,697,162 parameters, 798.7 M MACs per image",
        "cifar10, 10,000 test images",
        "accuracy 72.10 % [71.21, 72.97] % top 5 98.46 %",
        "NLL 0.7749 nats [0.7548, 0.7956] nats 0.7739 nats",
        "calibration error 1.92 % [1.52, 2.87] % 0.87 %",
        "temperature 1.102, fitted on held-out images",
        "same prediction on 83.52 %, KL(teacher || student) 0.1440 nats",
        "airplane 1,000 71.60 % [68.70, 74.30] % a class with a name",
        "automobile 1,000 90.40 % [88.40, 92.10] % airplane 96",
    ):
        assert part in found, part
    for unasked in ("against", "mirror", "augmentation", "latency", "severity", "McNemar"):
        assert unasked not in found


def test_of_many_classes_the_worst_are_shown() -> None:
    n, base = 130, FIGURES["per_class"][0]
    rows = [base | {"name": f"class-{k}", "accuracy": (k * 37 % n) / n} for k in range(n)]
    rows[3] |= {"n": 0, "accuracy": None, "interval": None}
    found = lines(FIGURES | {"per_class": rows, "confusion": [[0] * n] * n})
    shown = [int(line.split()[0][6:]) for line in found if line.startswith("class-")]
    worst = sorted(set(range(n)) - {3}, key=lambda k: k * 37 % n)[:100]
    assert shown == sorted(worst)
    assert any(line.startswith("class, the worst 100 of 130 ") for line in found)


def test_unknown_figures_have_a_reason() -> None:
    reasons = {"temperature": "nothing was held out", "teacher_agreement": "no teacher"}
    names = ("temperature", "nll_calibrated", "ece_calibrated", "teacher_agreement", "teacher_kl")
    unknown = FIGURES | dict.fromkeys((*names, "top5", "top5_interval")) | {"absent": reasons}
    found = words(unknown)
    assert "scaling – nothing was held out teacher – no teacher" in found
    assert "top 5" not in found and "calibrated" not in found
    assert "no teacher" not in words(unknown | {"role": "teacher"}), "a teacher needs none"


def test_requested_measurements_follow() -> None:
    found = words(FIGURES | MEASURED)
    for part in (
        "runs/real/kd-0 72.10 % [71.21, 72.97] % 1,220 5,990",
        "runs/real/alone-0 65.12 % [64.18, 66.05] % 522",
        "the network of runs/real/kd-0 is correct more often: McNemar's p < 0.0001.",
        "One run of each does not compare the recipes: type python cli.py seeds.",
        "not in the table above test 95 % interval",
        "With 6 views of each image (test-time augmentation), not in the table above: the image "
        "and its mirror, each also shifted by a pixel up-left and down-right. test 95 % interval",
        "accuracy 73.11 %",
        "A single view, for comparison: accuracy 72.10 %.",
        "latency 1.78 ms for 1 image (cpu, 1 thread, float32, median) 47.2 ms for 128 images",
        "gaussian noise 70.00 % 60.00 % 60.00 % 60.00 % 50.00 % 60.00 %",
        "mean 70.00 % 60.00 % 60.00 % 60.00 % 50.00 % 60.00 %",
        "Mean error 40.00 % on 500 images, 27.00 % on the same ones uncorrupted.",
        "Left out of the paper's corruptions: frost, which needs photographs.",
    ):
        assert part in found, part


def test_the_verdict_names_the_better_run_or_nothing() -> None:
    other = {"run": "b", "p": 0.0312, "better": "b"}
    assert mcnemar_text("a", other).startswith(
        "On images like these the network of b is correct more often: McNemar's p = 0.031.\n"
    )
    assert mcnemar_text("a", other | {"better": None, "p": 0.4}) == (
        "No difference is shown: McNemar's p = 0.4, both may be correct equally often."
    )
