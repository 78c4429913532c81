"""Our terms beside torchdistill's losses, on the same random inputs.

Where both follow a paper they agree; where torchdistill departs from it, the departure is pinned,
so that a version which mends it shows here. torchdistill is no dependency:

    uv pip install torchdistill
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from distill.losses.at import AT
from distill.losses.crd import CRD
from distill.losses.dist import DIST
from distill.losses.kd import KD
from distill.losses.logit_std import LogitStd
from distill.losses.objective import LossInputs
from distill.losses.pkt import PKT
from distill.losses.rkd import RKD
from distill.losses.sp import SP
from distill.losses.vid import VID
from tests.losses.loss_inputs import STUDENT, TEACHER, B, C, loss_inputs

theirs = pytest.importorskip(
    "torchdistill.losses.mid_level", reason="torchdistill is not installed"
)

TAPS = ("stages.0", "stages.1", "stages.2")
LOGITS = ("logits", "output")  # where a loss of theirs finds what it reads: a path, input or output


def io(given: LossInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """All inputs in torchdistill's dictionaries: path -> input or output -> tensor."""
    student = given.student_taps | {"logits": given.student}
    teacher = given.teacher_taps | {"logits": given.teacher}
    return tuple({path: {"output": t} for path, t in net.items()} for net in (student, teacher))


def value(loss: Any, given: LossInputs, *more: Tensor) -> Tensor:
    """What a loss of theirs says."""
    result: Tensor = loss(*io(given), *more)
    return result


def paths(tap: str) -> dict[str, str]:
    return {"student_output_path": tap, "teacher_output_path": tap}


def same(ours: Tensor, other: Tensor, rtol: float = 1e-6) -> None:
    assert ours > 1e-6, "nothing is compared"
    assert torch.isclose(ours, other, rtol=rtol, atol=0), (ours, other)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(temperature: float, seed: int) -> None:
    """Beside a hard term of any weight; without one their T^2 is lost."""
    given, soft = loss_inputs(seed=seed), {"temperature": temperature, "beta": 1.0}
    ours = KD(temperature)(given)
    labels = given.targets.argmax(-1)
    both = value(theirs.KDLoss(*LOGITS, *LOGITS, alpha=0.1, **soft), given, labels)
    hard = torch.nn.functional.cross_entropy(given.student, labels)
    same(ours, both - 0.1 * hard)
    alone = value(theirs.KDLoss(*LOGITS, *LOGITS, alpha=0.0, **soft), given, labels)
    same(ours, temperature**2 * alone)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_logit_std(temperature: float) -> None:
    """As for `kd`: without a hard term their T^2 is lost."""
    given, soft = loss_inputs(), {"temperature": temperature, "beta": 9.0}
    ours = LogitStd(temperature)(given)
    labels = given.targets.argmax(-1)
    both = value(theirs.LogitStdKDLoss(*LOGITS, *LOGITS, alpha=0.1, **soft), given, labels)
    hard = torch.nn.functional.cross_entropy(given.student, labels)
    same(9 * ours, both - 0.1 * hard)
    alone = value(theirs.LogitStdKDLoss(*LOGITS, *LOGITS, alpha=0.0, **soft), given, labels)
    same(ours, temperature**2 * alone)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist(temperature: float) -> None:
    """Theirs has a factor T^2, the paper none."""
    given = loss_inputs(batch=9)
    other = theirs.DISTLoss(*LOGITS, *LOGITS, beta=2.0, gamma=0.5, tau=temperature)
    same(temperature**2 * DIST(2.0, 0.5, temperature)(given), value(other, given))


@pytest.mark.parametrize(("reduction", "mode"), [("mean", "code"), ("paper", "paper")])
def test_at(reduction: Any, mode: str) -> None:
    given = loss_inputs()
    place = [{"path": tap, "io": "output"} for tap in TAPS]
    pairs = {p["path"]: {"student": p, "teacher": p, "weight": 1} for p in place}
    same(AT(reduction=reduction)(given), value(theirs.ATLoss(pairs, mode=mode), given))


def test_pkt() -> None:
    given, where = loss_inputs(batch=9), ("features", "output")
    other = value(theirs.PKTLoss(*where, *where), given)
    same(PKT(reduction="paper")(given), other)
    same(PKT()(given), 9 * other)


def test_rkd() -> None:
    given = loss_inputs(batch=9)
    other = theirs.RKDLoss(**paths("features"), dist_factor=1.0, angle_factor=2.0, reduction="mean")
    same(RKD()(given), value(other, given))
    other = theirs.RKDLoss(**paths("features"), dist_factor=3.0, angle_factor=0.0, reduction="mean")
    same(RKD(distance=3.0, angle=0.0)(given), value(other, given))


def test_sp() -> None:
    """Rows of norm 1: theirs are of L1 norm 1, the paper's of L2."""
    given = loss_inputs(batch=9)
    other = theirs.SPKDLoss(**paths("stages.2"), reduction="batchmean")
    departs, ours = value(other, given), SP(reduction="paper")(given)
    assert departs < 0.5 * ours

    def mended(maps: Tensor) -> Tensor:
        gram = maps.flatten(1) @ maps.flatten(1).T
        return torch.nn.functional.normalize(gram, dim=1)

    other.matmul_and_normalize = mended
    same(ours, value(other, given))


def test_vid() -> None:
    """The likelihood, under our regressors and variances."""
    given = loss_inputs()
    term = VID(student_shapes=STUDENT, teacher_shapes=TEACHER).double()
    with torch.no_grad():
        for alpha in term.alphas:
            alpha.copy_(torch.linspace(-2, 2, len(alpha)))
    guesses = {
        tap: (
            mean(given.student_taps[tap]),
            (alpha.exp().log1p() + 1e-5).view(1, -1, 1, 1),
        )
        for tap, mean, alpha in zip(TAPS, term.means, term.alphas, strict=True)
    }
    place = [{"path": tap, "io": "output"} for tap in TAPS]
    pairs = {p["path"]: {"student": p, "teacher": p} for p in place}
    io_dict = {tap: {"output": guess} for tap, guess in guesses.items()}
    same(term(given), theirs.VIDLoss(pairs)(io_dict, io(given)[1]))


def crd(labels: Tensor, dims: int, negatives: int) -> tuple[CRD, Any]:
    """Ours and theirs with the same banks."""
    torch.manual_seed(0)
    shapes: dict[str, Any] = {"student_shapes": STUDENT, "teacher_shapes": TEACHER}
    ours = CRD(dims=dims, negatives=negatives, labels=labels, **shapes).double()
    n = len(labels)
    other = theirs.CRDLoss("student", "given", "teacher", dims, n, negatives, n).double()
    other.memory_v1.copy_(ours.student_bank)
    other.memory_v2.copy_(ours.teacher_bank)
    return ours, other


def test_crd() -> None:
    """Three batches: the first fixes Z, each renews the banks. Their quotients contain 1e-7."""
    ours, other = crd(torch.arange(30) % C, dims=4, negatives=8)
    for seed in range(3):
        given = loss_inputs(seed=seed)
        v_s = ours._embed(ours.student_embed, given.student_taps["features"])
        v_t = ours._embed(ours.teacher_embed, given.teacher_taps["features"])
        torch.manual_seed(seed)
        chosen = torch.cat([given.samples[:, None], ours._negatives(given.samples)], dim=1)
        torch.manual_seed(seed)
        io_dict = {
            "student": {"output": v_s},
            "given": {"input": {"pos_idx": given.samples, "contrast_idx": chosen}},
        }
        same(ours(given), other(io_dict, {"teacher": {"output": v_t}}).squeeze(), rtol=1e-5)
        assert torch.allclose(ours.student_bank, other.memory_v1)
        assert torch.allclose(ours.teacher_bank, other.memory_v2)
    # Theirs count networks by who is asked, ours by whose bank is looked up.
    assert ours.teacher_z.item() == pytest.approx(other.params[2].item())
    assert ours.student_z.item() == pytest.approx(other.params[3].item())


def test_crd_cannot_draw_its_negatives_there() -> None:
    _, other = crd(torch.arange(30) % C, dims=4, negatives=8)
    with pytest.raises(AttributeError, match="prob"):
        other.draw(B)
