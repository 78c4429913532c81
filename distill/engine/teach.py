"""Who teaches: nobody, or a live teacher that sees exactly the student's pixels.

Beyer et al., CVPR 2022, arXiv 2106.05237: a good teacher is consistent; targets for another crop or
an un-mixed image look good early and end lower.
"""

from typing import Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class Teach(Protocol):
    """Whoever answers for the teacher."""

    def __call__(self, images: Tensor) -> Tensor | None:
        """Logits float32 [B, C] for images [B, 3, H, W] in [0, 1], or None where nobody teaches."""


def nobody(images: Tensor) -> None:
    """No teacher: the control."""


class Frozen(nn.Module):
    """A network that cannot wake: always in eval mode, no gradients, whatever is called on it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Ignores `mode`: a loop that says `train()` to all must not move batch statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


class Live:
    """The frozen teacher, asked for every batch; in no optimizer, no DDP, no checkpoint."""

    def __init__(self, teacher: Frozen, accelerator: Accelerator) -> None:
        self.teacher, self.accelerator = teacher, accelerator

    @torch.no_grad()  # not inference_mode: a loss may keep these logits for its backward
    def __call__(self, images: Tensor) -> Tensor:
        with self.accelerator.autocast():
            logits: Tensor = self.teacher(images)
        return logits.float()
