"""Compute the weighted sum of loss terms, and each term unweighted for the log.

A term reads `LossInputs` and returns one scalar. The objective returns every term's unweighted
value under its name beside the weighted total, so that the logged values always add up to the
minimised one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from distill.events import TOTAL

Taps = Mapping[str, Tensor]  # name -> [B, C, H, W], or [B, D] for `features`
Shapes = Mapping[str, tuple[int, ...]]  # name -> shape without the batch: (C, H, W) or (D,)


@dataclass(frozen=True)
class UnmixedTeacherLogits:
    """The teacher's logits for the two images of each mixed image, before they were mixed.

    `own`, `partner`: logits [B, C]; `lam`: [B, 1], the share of `own` in the mixed image.
    """

    own: Tensor
    partner: Tensor
    lam: Tensor


@dataclass(frozen=True)
class LossInputs:
    """The inputs of the loss terms for one batch, float32.

    `student`: logits [B, C]; `targets`: the labels as distributions [B, C], mixed like the images;
    `teacher`: logits [B, C] on the same pixels, or None without a teacher. `student_taps` and
    `teacher_taps`: the maps that some term reads, by name. `samples`: int64 [B], the index of each
    row in the training images. `unmixed`: the teacher's logits before mixing, if a term reads them.
    """

    student: Tensor
    targets: Tensor
    teacher: Tensor | None = None
    student_taps: Taps = field(default_factory=dict)
    teacher_taps: Taps = field(default_factory=dict)
    samples: Tensor | None = None
    unmixed: UnmixedTeacherLogits | None = None


class LossFunction(Protocol):
    """A loss term. A term with parameters or state is an `nn.Module`."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the loss, a float32 scalar."""


@dataclass(frozen=True)
class LossSchedule:
    """The factor on a term's weight as a function of the share of the training that is done.

    0 before `begin` and from `end` on; in between it rises linearly over the share `warmup` after
    `begin`, and then changes linearly to `fade_to` at `end`.
    """

    begin: float = 0.0
    end: float = 1.0
    warmup: float = 0.0
    fade_to: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the factor at `progress` in [0, 1)."""
        if not self.begin <= progress < self.end:
            return 0.0
        warm = self.begin + self.warmup
        if progress < warm:
            return (progress - self.begin) / self.warmup
        return 1 + (self.fade_to - 1) * (progress - warm) / (self.end - warm)

    def is_on(self, progress: float) -> bool:
        """Whether the term is computed, which it is during warm-up, even at a factor of 0."""
        return self.begin <= progress < self.end


@dataclass(frozen=True)
class LossTerm:
    """A term with its weight, schedule and `needs`, the inputs it reads (see loss_schema.py)."""

    weight: float
    loss: LossFunction
    schedule: LossSchedule = LossSchedule()
    needs: frozenset[str] = frozenset()


class Objective(nn.Module):
    """The sum of weight x schedule factor x loss over the terms that are on.

    A term of weight 0 is logged and has no gradient; a term that is off is not computed.
    """

    def __init__(self, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.losses = nn.ModuleDict(
            {name: t.loss for name, t in terms.items() if isinstance(t.loss, nn.Module)}
        )

    @property
    def change_points(self) -> list[float]:
        """Return the shares of the training, 0 and those below 1 at which a term begins or ends."""
        schedules = [term.schedule for term in self.terms.values()]
        return sorted({0.0, *(at for s in schedules for at in (s.begin, s.end) if at < 1)})

    def needs(self, progress: float) -> frozenset[str]:
        """Return the names of the inputs read by the terms that are on at `progress`."""
        on = (term.needs for term in self.terms.values() if term.schedule.is_on(progress))
        return frozenset[str]().union(*on)

    def forward(self, inputs: LossInputs, progress: float = 0.0) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        weighted = [self._inactive_zero(progress, inputs.student)]
        # In float32 whatever the networks' precision: Gram matrices and small differences lose
        # their digits in bfloat16.
        with torch.autocast(inputs.student.device.type, enabled=False):
            for name, term in self.terms.items():
                if term.schedule.is_on(progress):
                    values[name] = term.loss(inputs)
                    weighted.append(term.weight * term.schedule(progress) * values[name])
        return values | {TOTAL: torch.stack(weighted).sum()}

    def _inactive_zero(self, progress: float, logits: Tensor) -> Tensor:
        """Return 0.0 as a function of the parameters of terms that are off and of unread logits.

        DistributedDataParallel waits for a gradient of every parameter. If every term that is on
        reads maps, none reads the logits.
        """
        unused = sum(
            (p.sum() for p in self._inactive_parameters(progress)),
            start=logits.new_zeros(()).float(),
        )
        read = (term.needs for term in self.terms.values() if term.schedule.is_on(progress))
        if all("live teacher" in needs for needs in read):
            unused = unused + logits.float().sum()
        return 0 * unused

    def clear_inactive_grads(self, progress: float) -> None:
        """Drop the gradients of terms that are off, so that no decay or momentum changes them."""
        for parameter in self._inactive_parameters(progress):
            parameter.grad = None

    def _inactive_parameters(self, progress: float) -> Iterator[nn.Parameter]:
        for name, loss in self.losses.items():
            if not self.terms[name].schedule.is_on(progress):
                yield from loss.parameters()
