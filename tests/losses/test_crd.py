"""CRD against the paper's NCE, its banks, its negatives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.functional import normalize

from distill.losses.crd import CRD
from distill.losses.objective import LossInputs
from tests.losses.loss_inputs import LABELS, STUDENT, TEACHER, B, loss_inputs

N, K = len(LABELS), 8


def made(**changes: object) -> CRD:
    torch.manual_seed(0)
    settings = {"dims": 4, "negatives": K} | changes
    shapes = {"student_shapes": STUDENT, "teacher_shapes": TEACHER, "labels": LABELS}
    return CRD(**settings, **shapes).double()  # type: ignore[arg-type]


def embedded(term: CRD) -> tuple[torch.Tensor, torch.Tensor]:
    given = loss_inputs()
    return (
        normalize(term.student_embed(given.student_taps["features"])),
        normalize(term.teacher_embed(given.teacher_taps["features"])),
    )


def test_equals_the_nce_written_out() -> None:
    term, given = made(), loss_inputs()
    v_s, v_t = embedded(term)
    torch.manual_seed(5)
    others = term._negatives(given.samples)
    total = 0.0
    for v, bank in ((v_s, term.student_bank * 0 + term.teacher_bank), (v_t, term.student_bank)):
        scores = [
            [(bank[i] @ v[b] / 0.07).exp().item() for i in [b, *others[b].tolist()]]
            for b in range(B)
        ]
        z = sum(map(sum, scores)) / (B * (K + 1)) * N
        for right, *wrong in scores:
            total -= torch.tensor(right / z / (right / z + K / N)).log().item() / B
            for each in wrong:
                total -= torch.tensor((K / N) / (each / z + K / N)).log().item() / B
    torch.manual_seed(5)
    assert term(given).item() == pytest.approx(total, rel=1e-5)


def test_negatives_are_all_samples_of_other_classes() -> None:
    term = made(negatives=4000)
    others = term._negatives(torch.arange(B))
    for row in range(B):
        drawn = set(others[row].tolist())
        assert drawn == {i for i in range(N) if LABELS[i] != LABELS[row]}
        counts = others[row].bincount(minlength=N)[sorted(drawn)]
        assert counts.min() > 150 and counts.max() < 400  # of 250 each


def test_normalizer_is_fixed_by_the_first_batch() -> None:
    term = made()
    assert term.student_z == term.teacher_z == 0
    term(loss_inputs())
    first = term.student_z.clone(), term.teacher_z.clone()
    assert min(first) > 0
    term(loss_inputs(seed=1))
    assert (term.student_z, term.teacher_z) == first
    assert {"student_z", "teacher_z", "student_bank", "teacher_bank"} <= term.state_dict().keys()


def test_the_banks_are_running_means_of_norm_1() -> None:
    term, given = made(momentum=0.5), loss_inputs()
    before = term.student_bank.clone()
    v_s, _ = embedded(term)
    term(given)
    expected = normalize(0.5 * before[:B] + 0.5 * v_s, dim=-1)
    assert torch.allclose(term.student_bank[:B], expected)
    assert torch.equal(term.student_bank[B:], before[B:])
    assert torch.allclose(term.teacher_bank.norm(dim=1), torch.ones(N, dtype=torch.float64))


def test_measuring_leaves_the_banks_alone() -> None:
    term = made().eval()
    before = term.student_bank.clone()
    term(loss_inputs())
    assert torch.equal(term.student_bank, before)


def test_the_banks_do_not_move_torch_s_generator() -> None:
    torch.manual_seed(7)
    expected = [torch.nn.Linear(6, 4), torch.nn.Linear(7, 4)] and torch.rand(1)
    torch.manual_seed(7)
    CRD(dims=4, student_shapes=STUDENT, teacher_shapes=TEACHER, labels=LABELS)
    assert torch.equal(torch.rand(1), expected)


def test_a_sample_near_its_own_row_is_better() -> None:
    term, given = made().eval(), loss_inputs()
    term.student_z.fill_(50.0)
    term.teacher_z.fill_(50.0)
    torch.manual_seed(5)
    far = term(given)
    v_s, v_t = embedded(term)
    term.teacher_bank[:B], term.student_bank[:B] = v_s.detach(), v_t.detach()
    torch.manual_seed(5)
    assert term(given) < far


def test_missing_sample_numbers_are_reported() -> None:
    with pytest.raises(ValueError, match="crd term needs each image's sample number; none"):
        made()(replace(loss_inputs(), samples=None))


def test_a_score_of_nothing_is_finite() -> None:
    """Far from its own row at a low temperature h(s+) is 0 in float32, and its log is not."""
    term = made(temperature=0.02).float().eval()
    term.student_z.fill_(1e20)
    term.teacher_z.fill_(1e20)
    given = loss_inputs(dtype=torch.float32)
    v_s = normalize(term.student_embed(given.student_taps["features"])).detach()
    v_t = normalize(term.teacher_embed(given.teacher_taps["features"])).detach()
    term.teacher_bank[:B], term.student_bank[:B] = -v_s, -v_t
    given.student_taps["features"].requires_grad_()
    loss = term(given)
    loss.backward()
    assert loss.isfinite() and given.student_taps["features"].grad.isfinite().all()
    assert loss > 150  # two directions, each 1/0.02 + log 1e20 or so


def share(rank: int) -> LossInputs:
    """Rows of one of two processes."""
    given, rows = loss_inputs(), slice(rank * B // 2, (rank + 1) * B // 2)
    ours, theirs = (
        {"features": taps["features"][rows]} for taps in (given.student_taps, given.teacher_taps)
    )
    return LossInputs(
        given.student[rows], given.targets[rows], None, ours, theirs, given.samples[rows]
    )


def step(rank: int) -> CRD:
    """A first batch of that process's rows, with its own negatives."""
    term = made()
    torch.manual_seed(10 + rank)
    term(share(rank)).backward()
    return term


def one_of_two(rank: int, folder: Path) -> None:
    meeting = f"file://{folder / 'meeting'}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    term = step(rank)
    torch.save(dict(term.named_buffers()), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.multi
def test_two_processes_keep_the_same_banks_and_sizes(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    whole, halves = made(), [step(rank) for rank in (0, 1)]
    whole(loss_inputs())
    for name in ("student", "teacher"):
        assert torch.equal(first[f"{name}_bank"], second[f"{name}_bank"])
        assert torch.allclose(first[f"{name}_bank"], getattr(whole, f"{name}_bank"))
        mean = sum(getattr(half, f"{name}_z") for half in halves) / 2
        assert first[f"{name}_z"] == second[f"{name}_z"] == pytest.approx(mean.item())


def test_one_class_has_no_negatives() -> None:
    shapes = {"student_shapes": STUDENT, "teacher_shapes": TEACHER}
    with pytest.raises(ValueError, match="images of different classes, and all 7 are of one class"):
        CRD(**shapes, labels=torch.zeros(7, dtype=torch.int64))
