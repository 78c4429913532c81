"""Golden numbers: three steps of the `tiny` recipe with each term beside the labels.

A sign flipped in a term's file shows here and in that term's own tests, and nowhere else. After a
change that is meant, `python -m tests.engine.test_golden` prints the new numbers.
"""

import sys
import tempfile
from pathlib import Path

import pytest

from distill.engine.train import step
from distill.terms import Losses
from tests.runs import prepared, train

MORE = {
    "soft_mix": ["mix.cutmix.prob=0.5"],
    "crd": ["loss.crd.negatives=64", "loss.crd.dims=16"],
    "reviewkd": ["loss.reviewkd.width=8"],
    "simkd": ["student.projector_width=64"],
}
GOLDEN = {
    "hard": [2.32932, 2.33726, 2.35324],
    "kd": [0.0440082, 0.0423596, 0.0399439],
    "dkd": [0.0917576, 0.079452, 0.0652495],
    "dist": [2.16538, 1.7786, 1.35844],
    "logit_std": [0.984448, 0.759815, 0.548877],
    "mse": [0.0880892, 0.0756259, 0.063184],
    "multi_temperature": [0.0438976, 0.0400009, 0.0356647],
    "soft_mix": [0.0436111, 0.0394033, 0.0351311],
    "fitnet": [1.53434, 1.49157, 1.49025],
    "at": [0.0143137, 0.0145655, 0.0138089],
    "sp": [0.0434933, 0.0396237, 0.0475828],
    "nst": [0.146895, 0.146093, 0.141406],
    "pkt": [0.000459266, 0.000591054, 0.000412969],
    "rkd": [0.242101, 0.167967, 0.163747],
    "vid": [2.56545, 2.56216, 2.56907],
    "crd": [19.6403, 19.6814, 21.4209],
    "reviewkd": [4.11454, 4.01633, 3.94024],
    "simkd": [0.47025, 0.465804, 0.466377],
}  # fmt: skip


def measured(name: str, teacher: Path) -> list[float]:
    """The term's first three values."""
    sets = ["student.stages=3", "data.train_images=110"]
    if name != "hard":
        sets.append(f"teacher.runs=['{teacher}']")
    alone = ["loss.kd=false", "loss.hard.weight=1.0"] if name != "kd" else []
    term = [f"loss.{name}.weight={'0.9' if name == 'kd' else '1.0'}", *MORE.get(name, [])]
    run = prepared(*sets, *alone, *term)
    return [step(run, k)[name].item() for k in range(3)]


@pytest.mark.parametrize("name", Losses.model_fields)
def test_golden_losses_of_every_term(name: str, teacher: Path) -> None:
    assert measured(name, teacher) == pytest.approx(GOLDEN[name], rel=1e-4)


def test_every_term_has_its_numbers() -> None:
    assert list(GOLDEN) == list(Losses.model_fields)
    assert all(len(values) == 3 and len(set(values)) == 3 for values in GOLDEN.values())


def main() -> None:
    """Print the numbers as they are now."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "teacher"
        train(place, "loss.kd=false", "loss.hard.weight=1.0", "ema.decay=0.9", role="teacher")
        for name in Losses.model_fields:
            values = measured(name, place)
            print(f'    "{name}": [{", ".join(f"{value:.6g}" for value in values)}],')


if __name__ == "__main__":
    sys.exit(main())
