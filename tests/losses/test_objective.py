"""The total is the weighted sum of what is logged."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.events import TOTAL
from distill.losses.hard import Hard
from distill.losses.kd import KD
from distill.losses.objective import Answers, Objective, Weighted

ANSWERS = Answers(torch.randn(4, 10), torch.eye(10)[:4], torch.randn(4, 10))


@given(st.floats(0, 10), st.floats(0, 10))
def test_total_is_the_weighted_sum(hard: float, kd: float) -> None:
    objective = Objective({"hard": Weighted(hard, Hard()), "kd": Weighted(kd, KD())})
    terms = objective(ANSWERS)
    assert list(terms) == ["hard", "kd", TOTAL]
    assert torch.isclose(terms[TOTAL], hard * terms["hard"] + kd * terms["kd"])


def test_each_term_is_logged_without_its_weight() -> None:
    one, ten = (Objective({"kd": Weighted(w, KD())})(ANSWERS)["kd"] for w in (1.0, 10.0))
    assert torch.equal(one, ten)
