"""Golden numbers: three steps of the `tiny` recipe with each term beside the labels.

A sign flipped in a term's file shows here and in that term's own tests, and nowhere else. After a
change that is meant, `python -m tests.training.test_golden` prints the new numbers.
"""

import pytest
import torch

from distill.recipe.loss_schema import Losses
from distill.teacher.teacher import FrozenTeacher
from distill.training.loop import step
from teachers.wrn import WideResNet
from tests.make_runs import prepared

MORE = {
    "soft_mix": ["mix.cutmix.prob=0.5"],
    "fsp": ["student.width=16", "student.stem_width=16"],
    "crd": ["loss.crd.negatives=64", "loss.crd.dims=16"],
    "reviewkd": ["loss.reviewkd.width=8"],
    "simkd": ["student.projector_width=64"],
}
GOLDEN = {
    "hard": [2.32932, 2.33726, 2.35324],
    "kd": [0.0580901, 0.0554246, 0.0522446],
    "dkd": [0.120931, 0.102711, 0.0877852],
    "dist": [2.3119, 1.50539, 1.21112],
    "logit_std": [0.85481, 0.441595, 0.197158],
    "mse": [0.115265, 0.0981596, 0.0848735],
    "multi_temperature": [0.0585067, 0.052766, 0.0484644],
    "ctkd": [0.0577654, 0.0523005, 0.048221],
    "mlkd": [0.148115, 0.118699, 0.0965138],
    "ttm": [0.0351172, 0.0314872, 0.0273818],
    "wkd": [0.263318, 0.246831, 0.260513],
    "soft_mix": [0.0578386, 0.0518877, 0.0469249],
    "fitnet": [1.2027, 1.18406, 1.16168],
    "at": [0.0136927, 0.0148743, 0.0144954],
    "sp": [0.0903246, 0.0810217, 0.0913817],
    "nst": [0.154908, 0.158947, 0.153982],
    "fsp": [0.152198, 0.158863, 0.166359],
    "ab": [71.4819, 60.6147, 52.6832],
    "ft": [0.0510937, 0.0498468, 0.0493956],
    "pkt": [0.000499768, 0.000737205, 0.00041268],
    "rkd": [0.316957, 0.180895, 0.214663],
    "cc": [9.12029, 2.34677, 2.12278],
    "vid": [2.50322, 2.50396, 2.50325],
    "crd": [19.4213, 20.3962, 20.4957],
    "reviewkd": [3.75188, 3.70197, 3.5893],
    "simkd": [0.461199, 0.459886, 0.456959],
}  # fmt: skip


def measured(name: str) -> list[float]:
    """The term's first three values, under a teacher of fresh weights: training one would add a
    rounding of its own for each number of threads."""
    torch.manual_seed(5)
    teacher = FrozenTeacher(WideResNet(depth=10, widen=1))
    sets = ["student.stages=3", "data.train_images=110"]
    alone = ["loss.kd=false", "loss.hard.weight=1.0"] if name != "kd" else []
    term = [f"loss.{name}.weight={'0.9' if name == 'kd' else '1.0'}", *MORE.get(name, [])]
    run = prepared(*sets, *alone, *term, teacher=teacher)
    return [step(run, k)[name].item() for k in range(3)]


@pytest.mark.long
@pytest.mark.parametrize("name", Losses.model_fields)
def test_golden_losses_of_every_term(name: str) -> None:
    assert measured(name) == pytest.approx(GOLDEN[name], rel=2e-4)


def test_every_term_has_its_numbers() -> None:
    assert list(GOLDEN) == list(Losses.model_fields)
    assert all(len(values) == 3 and len(set(values)) == 3 for values in GOLDEN.values())


def main() -> None:
    """Print the numbers as they are now."""
    for name in Losses.model_fields:
        print(f'    "{name}": [{", ".join(f"{value:.6g}" for value in measured(name))}],')


if __name__ == "__main__":
    main()
