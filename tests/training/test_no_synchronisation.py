"""No step asks the device for a value: read off every operation that it dispatches.

On a GPU the host would stand still until the value is there. What a CUDA device says of it itself
is in `test_gpu.py`; this sees the same step without one, for every recipe.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill.recipe import recipes
from distill.training.loop import step
from distill.training.mean_losses import RunningMeans
from tests.make_runs import prepared
from tests.training.test_shipped_recipes import INGREDIENTS, WHOLE, in_small

pytestmark = pytest.mark.long

ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}


class Questions(TorchDispatchMode):
    """Operations whose result, or its shape, the host has to know.

    Not those on `at_home`: an optimizer's step counters lie with the host on every device.
    """

    def __init__(self, at_home: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.at_home = {t.data_ptr() for t in at_home}
        self.calls: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations += 1
        name = func.overloadpacket.__name__
        asks = name in ASKING and args[0].data_ptr() not in self.at_home
        if asks or (name.startswith("index") and self._by_mask(args)):
            self.calls.append(str(func))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _by_mask(args: tuple[Any, ...]) -> bool:
        chosen = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
        return any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in chosen)


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.sum().item(),
        lambda t: float(t.max()),
        lambda t: t[t > 0],
        lambda t: bool((t > 0).all()),
        lambda t: t.nonzero(),
        lambda t: torch.equal(t, t),
        lambda t: t.unique(),
    ],
)
def test_a_question_is_seen(ask) -> None:  # type: ignore[no-untyped-def]
    with Questions() as recorder:
        ask(torch.randn(4))
    assert recorder.calls


@pytest.mark.parametrize("spec", [*(p.stem for p in WHOLE), *(f"kd+{p.stem}" for p in INGREDIENTS)])
def test_no_step_waits_for_the_device(spec: str, teacher: Path) -> None:
    role = "student" if recipes.load(spec).recipe.student else "teacher"
    run = prepared(*in_small(spec, teacher), recipe=spec, role=role)
    run.divergence.at_once = False  # as where a question would be one of the device
    means = RunningMeans()
    means.add(step(run, 0))  # draws the view, once an epoch
    counters = [s["step"] for s in run.optimizer.state.values() if torch.is_tensor(s.get("step"))]
    with Questions(counters) as recorder:
        for k in (1, 2):
            means.add(step(run, k))
    assert recorder.operations > 100
    assert not recorder.calls
