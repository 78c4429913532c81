"""What every term has in common: gradients, finite numbers, a minimum, no batch size.

Each test names its term in its id; what a term computes is in its own file, `test_<term>.py`.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.components.build_loss_terms import LOSSES
from distill.losses.objective import LossInputs, LossTerm, Objective, UnmixedTeacherLogits
from distill.recipe.loss_schema import Losses
from tests.losses.loss_inputs import LABELS, STUDENT, TEACHER, B, C, loss_inputs

ON_LOGITS = (
    "hard", "kd", "dkd", "dist", "logit_std", "mse", "multi_temperature", "ctkd", "mlkd",
    "ttm", "wkd", "soft_mix",
)  # fmt: skip
ON_MAPS = (
    "fitnet", "at", "sp", "nst", "fsp", "ab", "ft", "pkt", "rkd", "cc", "vid", "crd", "reviewkd",
    "simkd",
)  # fmt: skip
EQUAL_CHANNELS = ("fsp",)  # refuse maps whose channels differ between the networks
LEARNING = ("fitnet", "ab", "ft", "cc", "vid", "crd", "reviewkd")  # with parameters of their own
EVERY = (*ON_LOGITS, *ON_MAPS)
STAGES = ("stages.0", "stages.1", "stages.2")
SHAPES = {"student_shapes": STUDENT, "teacher_shapes": TEACHER, "labels": LABELS}


def made(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A term by its name, as `build.py` makes it."""
    torch.manual_seed(0)
    small = {
        "crd": {"dims": 4, "negatives": 8},
        "reviewkd": {"width": 3},
        "ft": {"reconstruction": 1.0},  # so that one step changes every float32 parameter
    }.get(name, {})
    facts = SHAPES if name in LEARNING else {}
    if name in EQUAL_CHANNELS:
        facts = {"student_shapes": TEACHER, "teacher_shapes": TEACHER}
        small = {"student_taps": STAGES, "teacher_taps": STAGES}
    if name in LEARNING and name != "crd":
        facts = {key: value for key, value in facts.items() if key != "labels"}
    if name == "wkd":
        facts = {"teacher_class_weights": torch.randn(C, 7, dtype=torch.float64)}
    term = LOSSES[name](**(small | facts | changes))
    if isinstance(term, nn.Module):
        term.to(dtype)
        if name == "crd":  # the scores' size, as after a first batch
            term.student_z.fill_(9.0)
            term.teacher_z.fill_(9.0)
            term.eval()
    return term


def given_to(name: str, **changes: Any) -> LossInputs:
    """Inputs of the shapes that the term accepts."""
    return loss_inputs(**{"like_teacher": name in EQUAL_CHANNELS} | changes)


def with_student(given: LossInputs, name: str, change: Any) -> LossInputs:
    """The same inputs, with all that the term reads of the student changed."""
    if name in ON_LOGITS:
        return replace(given, student=change(given.student))
    return replace(given, student_taps={k: change(v) for k, v in given.student_taps.items()})


def value(term: Any, given: LossInputs) -> Tensor:
    torch.manual_seed(1)  # of crd's negatives
    result: Tensor = term(given)
    return result


def test_every_term_is_tested_and_has_a_file() -> None:
    assert set(EVERY) == set(Losses.model_fields) == set(LOSSES)
    here = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    assert {f"test_{name}" for name in EVERY} <= here
    print(f"{len(EVERY)} terms")


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    term, given = made(name), given_to(name)
    read = {"student": given.student} if name in ON_LOGITS else dict(given.student_taps)

    def of(*leaves: Tensor) -> Tensor:
        named = dict(zip(read, leaves, strict=True))
        now = (
            replace(given, student=named["student"])
            if name in ON_LOGITS
            else replace(given, student_taps=named)
        )
        return value(term, now)

    leaves = [t.clone().requires_grad_() for t in read.values()]
    assert torch.autograd.gradcheck(of, leaves, atol=1e-5, rtol=1e-3, fast_mode=True)
    loss = of(*leaves)
    loss.backward()
    assert loss.dtype == torch.float64 and loss.dim() == 0
    moved = [leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves]
    assert any(moved)


def extreme(kind: str, tensor: Tensor) -> Tensor:
    fill = {"zero": 0.0, "constant": 3.0, "huge": 1e4}
    if kind == "gap":
        out = torch.zeros_like(tensor)
        out[..., 0] = 100
        return out
    return torch.full_like(tensor, fill[kind]) * (1 if kind != "huge" else tensor.sign())


@pytest.mark.parametrize("kind", ["gap", "zero", "constant", "huge"])
@pytest.mark.parametrize("name", EVERY)
def test_finite_under_bfloat16_autocast(name: str, kind: str) -> None:
    """Logit gaps of 100, maps of zeros, of constants, of thousands; value and gradient."""
    if kind == "huge" and name in ON_LOGITS:
        kind = "gap"
    term, given = made(name, torch.float32), given_to(name, dtype=torch.bfloat16)
    for ours, theirs in ((kind, None), (None, kind), (kind, kind)):
        now = given
        if ours:
            now = with_student(now, name, partial(extreme, ours))
        if theirs:
            now = replace(
                now,
                teacher=extreme(theirs, now.teacher),
                teacher_taps={k: extreme(theirs, v) for k, v in now.teacher_taps.items()},
                unmixed=UnmixedTeacherLogits(
                    extreme(theirs, now.unmixed.own), now.unmixed.partner, now.unmixed.lam.float()
                ),
            )
        now = with_student(now, name, lambda t: t.clone().requires_grad_())
        objective = Objective({name: LossTerm(1.0, term)})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = objective(now)[name]
        loss.backward()
        leaves = [now.student] if name in ON_LOGITS else list(now.student_taps.values())
        assert loss.dtype == torch.float32 and loss.isfinite(), (ours, theirs)
        assert all(t.grad is None or t.grad.isfinite().all() for t in leaves), (ours, theirs)


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"hard", "ttm", "wkd", *LEARNING}))
def test_zero_if_student_equals_teacher(name: str) -> None:
    given = loss_inputs(like_teacher=True)
    same = replace(
        given,
        student=given.teacher,
        student_taps=dict(given.teacher_taps) | {"projector": given.teacher_taps["maps"]},
        unmixed=UnmixedTeacherLogits(given.teacher, given.teacher, given.unmixed.lam),
    )
    term, generator = made(name), torch.Generator().manual_seed(2)
    least = value(term, same)
    assert least.abs() < 1e-6

    for size in (0.1, 1.0):
        away = with_student(
            same,
            name,
            lambda t, s=size: t + s * torch.randn(t.shape, generator=generator, dtype=t.dtype),
        )
        assert value(term, away) > least + 1e-7


@pytest.mark.long
@pytest.mark.parametrize("name", EVERY)
def test_descent_lowers_it(name: str) -> None:
    """Small steps against the gradient: of the outputs of the student, and of the term's own."""
    term, given = made(name), given_to(name)
    own = list(term.parameters()) if isinstance(term, nn.Module) else []
    first = value(term, given).item()
    for _ in range(20):
        now = with_student(given, name, lambda t: t.detach().clone().requires_grad_())
        leaves = [now.student] if name in ON_LOGITS else list(now.student_taps.values())
        for parameter in own:
            parameter.grad = None
        value(term, now).backward()
        steps = [leaf for leaf in [*leaves, *own] if leaf.grad is not None]
        size = sum(leaf.grad.square().sum() for leaf in steps).sqrt()
        with torch.no_grad():
            for leaf in steps:
                leaf -= 0.02 * leaf.grad / size
        given = with_student(now, name, lambda t: t.detach())
    assert value(term, given).item() < first


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"cc", "crd", "rkd"}))
def test_a_batch_twice_over_has_the_same_value(name: str) -> None:
    """The mean over samples. `rkd` divides by a mean distance that twins make smaller; `cc` has the
    product of the last sample and the first one in addition."""

    def twice(t: Tensor) -> Tensor:
        return torch.cat([t, t])

    term, once = made(name), given_to(name)
    double = LossInputs(
        twice(once.student),
        twice(once.targets),
        twice(once.teacher),
        {k: twice(v) for k, v in once.student_taps.items()},
        {k: twice(v) for k, v in once.teacher_taps.items()},
        twice(once.samples),
        UnmixedTeacherLogits(
            *(twice(t) for t in (once.unmixed.own, once.unmixed.partner, once.unmixed.lam))
        ),
    )
    assert torch.isclose(value(term, double), value(term, once), rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    if name in ("cc", "crd"):
        pytest.skip("compares neighbours, or draws negatives row by row")
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    once, term = given_to(name), made(name)
    other = LossInputs(
        once.student[order],
        once.targets[order],
        once.teacher[order],
        {k: v[order] for k, v in once.student_taps.items()},
        {k: v[order] for k, v in once.teacher_taps.items()},
        once.samples[order],
        UnmixedTeacherLogits(
            once.unmixed.own[order], once.unmixed.partner[order], once.unmixed.lam[order]
        ),
    )
    assert torch.isclose(value(term, other), value(term, once), rtol=1e-6)


@pytest.mark.parametrize("name", sorted({*ON_LOGITS} - {"hard", "soft_mix"}))
def test_missing_teacher_is_reported(name: str) -> None:
    message = f"the {name} term needs a teacher's logits, and there is no teacher"
    with pytest.raises(ValueError, match=message):
        made(name)(replace(loss_inputs(), teacher=None))


@pytest.mark.parametrize("name", LEARNING)
def test_parameters_of_a_term_are_trained_and_saved(name: str) -> None:
    term = made(name, torch.float32)
    given = loss_inputs(dtype=torch.float32)
    before = {key: t.clone() for key, t in term.state_dict().items()}
    optimizer = torch.optim.SGD(term.parameters(), lr=0.1)
    value(term, given).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())
    optimizer.step()
    assert all(not torch.equal(p, before[key]) for key, p in term.named_parameters())
    other = made(name, torch.float32)
    other.load_state_dict(term.state_dict())
    assert torch.equal(value(other.eval(), given), value(term.eval(), given))


@pytest.mark.parametrize(
    "name", ["kd", "dkd", "dist", "mse", "multi_temperature", "ttm", "wkd", "soft_mix"]
)
def test_constant_added_to_row_of_logits_changes_nothing(name: str) -> None:
    given, shift = loss_inputs(), torch.linspace(-5, 5, B, dtype=torch.float64)[:, None]
    pair = UnmixedTeacherLogits(
        given.unmixed.own - shift, given.unmixed.partner + 2, given.unmixed.lam
    )
    moved = replace(given, student=given.student + shift, teacher=given.teacher - 3, unmixed=pair)
    assert torch.isclose(value(made(name), moved), value(made(name), given), rtol=1e-9)


@pytest.mark.parametrize("name", sorted({*ON_LOGITS} - {"wkd"}))  # has distances of classes
def test_the_classes_have_no_order(name: str) -> None:
    order = torch.randperm(C, generator=torch.Generator().manual_seed(4))
    given = loss_inputs()
    pair = UnmixedTeacherLogits(
        given.unmixed.own[:, order], given.unmixed.partner[:, order], given.unmixed.lam
    )
    other = replace(
        given,
        student=given.student[:, order],
        teacher=given.teacher[:, order],
        targets=given.targets[:, order],
        unmixed=pair,
    )
    assert torch.isclose(value(made(name), other), value(made(name), given), rtol=1e-9)
