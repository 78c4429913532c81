"""Query the teacher for the batch that the student sees: a frozen network, or none.

Beyer et al., CVPR 2022, arXiv 2106.05237: a good teacher is consistent; targets for another crop or
an un-mixed image look good early and end lower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.data import rng
from distill.data.loader import Loader, View
from distill.data.rng import Stream
from distill.losses.objective import Pair
from distill.models.features import Answer, Tapped


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
        """Stores nothing: the logits are computed anew for every batch."""

    @property
    def networks(self) -> "tuple[Live, ...]":
        """This teacher alone; several if they are drawn."""
        return (self,)

    def plain(self, view: View, rows: Tensor) -> Tensor:
        images = self.loader.resized(view, self.loader.augment(view, rows))
        return self.mixed(view, rows, images).logits


class Drawn:
    """One of several live teachers for each view, at the price of one forward.

    Blakeney et al. (2022, arXiv 2211.00683) draw a teacher for each step and find the gain of the
    ensemble. Here the draw is a function of (data seed, view): all processes ask the same teacher,
    a resumed run asks it again, and a view's cached logits are those of one teacher. `weights`: as
    many as teachers, above 0, of any sum; each is drawn with the probability w / sum w.
    """

    def __init__(self, teachers: Sequence[Live], weights: Sequence[float], seed: int) -> None:
        self.networks, self.weights, self.seed = tuple(teachers), tuple(weights), seed

    def choice(self, view: int) -> int:
        """The position of the teacher of a view."""
        return rng.choice(self.seed, view, Stream.TEACHER, self.weights)

    def mixed(self, view: View, rows: Tensor, images: Tensor) -> Answer:
        return self.networks[self.choice(view.number)].mixed(view, rows, images)

    def plain(self, view: View, rows: Tensor) -> Tensor:
        return self.networks[self.choice(view.number)].plain(view, rows)

    is_complete = False

    def keep(self) -> None:
        """Stores nothing: the logits are computed anew for every batch."""
