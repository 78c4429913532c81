"""Detect losses and gradients that are not finite before they are saved."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

NEVER = torch.iinfo(torch.int64).max


class Diverged(Exception):
    """The loss or the gradient of a step is not finite; the last checkpoint is from before it."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient is not finite in step {step:,}")
        self.step = step  # counted from 1, as the journal counts


class DivergenceMonitor:
    """The first step whose loss or gradient was not finite.

    On a CPU it is read at once, before the weights have it. On a GPU it stays on the device, which
    nobody waits for, and is read by `check`: where losses are logged and before anything is saved;
    what the weights became meanwhile is thrown away.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.first = torch.full((), NEVER, device=accelerator.device)
        self.gradient: Tensor | None = None  # of the last step, its norm
        self.at_once = accelerator.device.type == "cpu"  # where reading a value is free

    def record(self, step: int, loss: Tensor, gradient: Tensor | None) -> None:
        """Step `step` (from 1): its loss, of this process, and the gradient's norm, of all.

        Raises Diverged on a CPU.
        """
        self.gradient = gradient
        values = torch.stack([v.detach().float() for v in (loss, gradient) if v is not None])
        is_finite = values.isfinite()
        self.first = torch.where(is_finite.all(), self.first, self.first.clamp(max=step))
        if self.at_once:
            # All processes leave together: of several, by what is the same for all of them.
            known = is_finite if self.accelerator.num_processes == 1 else is_finite[1:]
            if not known.all():
                raise Diverged(step)

    def raise_if_diverged(self) -> None:
        """Raises Diverged on all processes where any has seen it; waits for the device."""
        first = int(self.accelerator.gather(self.first[None]).min())
        if first != NEVER:
            raise Diverged(first)

    def reset(self) -> None:
        """What was seen is undone."""
        self.first = torch.full_like(self.first, NEVER)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of the whole gradient. One pass over it."""
    return get_total_norm([p.grad for p in parameters if p.grad is not None])
