"""The total is the weighted sum of what is logged, and a term counts when it should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.events import TOTAL
from distill.losses.hard import Hard
from distill.losses.kd import KD
from distill.losses.objective import LossInputs, LossSchedule, LossTerm, Objective

INPUTS = LossInputs(torch.randn(4, 10), torch.eye(10)[:4], torch.randn(4, 10))


@pytest.mark.long
@given(st.floats(0, 10), st.floats(0, 10))
def test_total_is_the_weighted_sum(hard: float, kd: float) -> None:
    objective = Objective({"hard": LossTerm(hard, Hard()), "kd": LossTerm(kd, KD())})
    terms = objective(INPUTS)
    assert list(terms) == ["hard", "kd", TOTAL]
    assert torch.isclose(terms[TOTAL], hard * terms["hard"] + kd * terms["kd"])


def test_each_term_is_logged_without_its_weight() -> None:
    one, ten = (Objective({"kd": LossTerm(w, KD())})(INPUTS)["kd"] for w in (1.0, 10.0))
    assert torch.equal(one, ten)


def test_a_term_rises_stays_and_ends() -> None:
    when = LossSchedule(begin=0.2, end=0.8, warmup=0.2)
    factors = [when(p) for p in (0.0, 0.19, 0.2, 0.3, 0.4, 0.6, 0.79, 0.8, 0.99)]
    assert factors == pytest.approx([0, 0, 0, 0.5, 1, 1, 1, 0, 0])
    assert [when.is_on(p) for p in (0.19, 0.2, 0.79, 0.8)] == [False, True, True, False]


def test_term_fades_linearly_after_its_warmup() -> None:
    when = LossSchedule(warmup=0.5, fade_to=0.2)
    assert [when(p) for p in (0.25, 0.5, 0.75, 1 - 1e-12)] == pytest.approx([0.5, 1, 0.6, 0.2])
    assert LossSchedule()(0.0) == LossSchedule()(0.7) == 1


def test_inactive_term_is_neither_computed_nor_logged() -> None:
    terms = {
        "hard": LossTerm(1.0, Hard(), needs=frozenset({"labels"})),
        "kd": LossTerm(2.0, KD(), LossSchedule(begin=0.5), frozenset({"teacher"})),
    }
    objective = Objective(terms)
    without_teacher = LossInputs(INPUTS.student, INPUTS.targets)
    assert list(objective(without_teacher, 0.4)) == ["hard", TOTAL]
    assert objective.needs(0.4) == {"labels"} and objective.needs(0.5) == {"labels", "teacher"}
    later = objective(INPUTS, 0.5)
    assert torch.isclose(later[TOTAL], later["hard"] + 2 * later["kd"])


@pytest.mark.long
@given(st.floats(0, 0.999), st.floats(0.1, 9), st.floats(0, 0.4), st.floats(0, 3))
def test_total_sums_weight_times_factor_times_term(
    progress: float, weight: float, warmup: float, fade_to: float
) -> None:
    when = LossSchedule(warmup=warmup, fade_to=fade_to)
    terms = {"hard": LossTerm(1.0, Hard()), "kd": LossTerm(weight, KD(), when)}
    values = Objective(terms)(INPUTS, progress)
    expected = values["hard"] + weight * when(progress) * values["kd"]
    assert torch.isclose(values[TOTAL], expected)


class Learning(nn.Module):
    """A term with a parameter, as hints and contrasts have."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs: LossInputs) -> Tensor:
        return self.scale * inputs.student.square().mean()


def test_parameters_of_terms_belong_to_the_objective() -> None:
    objective = Objective({"hard": LossTerm(1.0, Hard()), "hint": LossTerm(1.0, Learning())})
    assert [name for name, _ in objective.named_parameters()] == ["losses.hint.scale"]
    restored = Objective({"hard": LossTerm(1.0, Hard()), "hint": LossTerm(1.0, Learning())})
    objective.losses["hint"].scale.data.fill_(5)
    restored.load_state_dict(objective.state_dict())
    assert restored.losses["hint"].scale.item() == 5


def test_inactive_term_leaves_zero_gradients() -> None:
    """DistributedDataParallel waits for one."""
    hint = Learning()
    objective = Objective(
        {"hard": LossTerm(1.0, Hard()), "hint": LossTerm(1.0, hint, LossSchedule(end=0.5))}
    )
    student = INPUTS.student.clone().requires_grad_()
    objective(LossInputs(student, INPUTS.targets), 0.5)[TOTAL].backward()
    assert hint.scale.grad.item() == 0 and student.grad.abs().sum() > 0


def test_a_term_that_has_ended_rests() -> None:
    """Neither the decay nor the momentum of the optimizer goes on without it."""
    hint = Learning()
    objective = Objective(
        {"hard": LossTerm(1.0, Hard()), "hint": LossTerm(1.0, hint, LossSchedule(end=0.5))}
    )
    sgd = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    seen = []
    for progress in (0.0, 0.4, 0.5, 0.9):
        objective(INPUTS, progress)[TOTAL].backward()
        objective.clear_inactive_grads(progress)
        sgd.step()
        sgd.zero_grad()
        seen.append(hint.scale.item())
    assert 2.0 != seen[0] != seen[1] == seen[2] == seen[3]


@pytest.mark.parametrize("needs", [frozenset({"live teacher"}), frozenset({"teacher"})])
def test_logits_have_gradient_if_only_maps_are_read(needs: frozenset[str]) -> None:
    """Of zero, which DistributedDataParallel waits for; where logits are read it is theirs."""
    logits = INPUTS.student.clone().requires_grad_()
    maps = torch.ones(4, requires_grad=True)
    term = LossTerm(1.0, lambda inputs: inputs.student_taps["maps"].sum(), needs=needs)
    objective = Objective({"hint": term})
    objective(LossInputs(logits, INPUTS.targets, student_taps={"maps": maps}))[TOTAL].backward()
    assert maps.grad.sum() == 4
    assert (logits.grad is not None and not logits.grad.any()) == ("live teacher" in needs)


def test_terms_are_in_float32_under_autocast() -> None:
    class Product:
        def __call__(self, inputs: LossInputs) -> Tensor:
            return (inputs.student @ inputs.student.T).sum()

    objective = Objective({"product": LossTerm(1.0, Product())})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = objective(INPUTS)["product"]
    assert value.dtype == torch.float32
    assert torch.equal(value, (INPUTS.student @ INPUTS.student.T).sum())
