"""Who teaches: nobody, or a teacher that sees exactly the student's pixels, asked now or before.

Beyer et al., CVPR 2022, arXiv 2106.05237: a good teacher is consistent; targets for another crop or
an un-mixed image look good early and end lower.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.data.loader import Loader, View
from distill.engine.taps import Answer, Tapped
from distill.losses.objective import Pair


@dataclass(frozen=True)
class Lesson:
    """What the teacher says of a batch, as far as it was asked."""

    logits: Tensor | None = None  # float32 [b, C], of the mixed images
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    pair: Pair | None = None


class Teach(Protocol):
    """Whoever answers for the teacher."""

    def __call__(self, view: View, rows: Tensor, images: Tensor, needs: frozenset[str]) -> Lesson:
        """The lesson on `images` [b, 3, H, W], samples `rows` of `view`; `needs` as in terms.py."""


class Source(Protocol):
    """Where a teacher's answers come from."""

    def mixed(self, view: View, rows: Tensor, images: Tensor) -> Answer:
        """On the student's very pixels."""

    def plain(self, view: View, rows: Tensor) -> Tensor:
        """Logits [b, C] of samples as they are before mixing."""

    @property
    def is_complete(self) -> bool:
        """Whether all that may be asked is known already."""

    def keep(self) -> None:
        """Store what was asked so far, where it is stored at all. Called by all processes."""


def nobody(view: View, rows: Tensor, images: Tensor, needs: frozenset[str]) -> Lesson:
    """No teacher: the control."""
    return Lesson()


@dataclass(frozen=True)
class Taught:
    """A source is asked for what the terms need now, and for nothing else."""

    source: Source

    @property
    def is_complete(self) -> bool:
        """Whether no answer will have to be asked for any more."""
        return self.source.is_complete

    def keep(self) -> None:
        """Store what was asked so far, where it is stored at all. Called by all processes."""
        self.source.keep()

    def __call__(self, view: View, rows: Tensor, images: Tensor, needs: frozenset[str]) -> Lesson:
        lesson = Lesson()
        if needs & {"teacher", "live teacher"}:
            answer = self.source.mixed(view, rows, images)
            lesson = Lesson(answer.logits, answer.taps)
        if "pair" in needs:
            lesson = Lesson(lesson.logits, lesson.taps, self._pair(view, rows))
        return lesson

    def _pair(self, view: View, rows: Tensor) -> Pair:
        own, partner = (self.source.plain(view, r) for r in (rows, view.partners(rows)))
        return Pair(own, partner, view.own_share(rows).to(own.device))


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

    def __init__(
        self, teacher: Frozen, accelerator: Accelerator, loader: Loader, taps: tuple[str, ...] = ()
    ) -> None:
        self.tapped = Tapped(teacher.net, taps)
        self.accelerator, self.loader = accelerator, loader

    @torch.no_grad()  # not inference_mode: a loss may keep these answers for its backward
    def mixed(self, view: View, rows: Tensor, images: Tensor) -> Answer:
        with self.accelerator.autocast():
            answer: Answer = self.tapped(images)
        return Answer(answer.logits.float(), {name: t.float() for name, t in answer.taps.items()})

    is_complete = False

    def keep(self) -> None:
        """A teacher that is asked every time remembers nothing."""

    def plain(self, view: View, rows: Tensor) -> Tensor:
        images = self.loader.resized(view, self.loader.augment(view, rows))
        return self.mixed(view, rows, images).logits
