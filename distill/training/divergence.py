"""Detect non-finite losses and gradients before the weights that they damage are saved."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

NEVER = torch.iinfo(torch.int64).max


class Diverged(Exception):
    """Raised if the loss or the gradient of a step is not finite.

    The last checkpoint was saved before that step.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient is not finite in step {step:,}")
        self.step = step  # counted from 1, as the journal counts


class DivergenceMonitor:
    """Records the first step whose loss or gradient is not finite.

    On a CPU each step is checked at once, before the weights change. On a GPU the result stays on
    the device, so that no step waits for it; the training loop calls `raise_if_diverged` when it
    logs losses and before it saves anything. The weights of the steps in between are discarded.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.first = torch.full((), NEVER, device=accelerator.device)
        self.gradient: Tensor | None = None  # norm of the last step's gradient
        self.at_once = accelerator.device.type == "cpu"  # reading a value is free there

    def record(self, step: int, loss: Tensor, gradient: Tensor | None) -> None:
        """Record the loss of this process and the gradient norm of all processes in `step` (from
        1).

        `gradient` is None under a loss scaler. On a CPU, raises Diverged if one of them is not
        finite. On a GPU no value is read, because reading would wait for the device.
        """
        self.gradient = gradient
        values = torch.stack([v.detach().float() for v in (loss, gradient) if v is not None])
        is_finite = values.isfinite()
        self.first = torch.where(is_finite.all(), self.first, self.first.clamp(max=step))
        if self.at_once:
            # All processes must raise together: several check only the gradient norm, which is the
            # same in all of them.
            checked = is_finite if self.accelerator.num_processes == 1 else is_finite[1:]
            if not checked.all():
                raise Diverged(step)

    def raise_if_diverged(self) -> None:
        """Raise Diverged on all processes if any has recorded a divergence; waits for the
        device.
        """
        first = int(self.accelerator.gather(self.first[None]).min())
        if first != NEVER:
            raise Diverged(first)

    def reset(self) -> None:
        """Discard the recorded step."""
        self.first = torch.full_like(self.first, NEVER)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the L2 norm of the gradients of all parameters together, as a scalar tensor."""
    return get_total_norm([p.grad for p in parameters if p.grad is not None])
