"""The weighted sum of named loss terms, each logged unweighted.

A term reads `Answers` and returns one scalar. The objective keeps every term's own, unweighted
value under its name beside the weighted total, so that what is logged always adds up to what was
minimised.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from distill.events import TOTAL

Taps = Mapping[str, Tensor]  # name -> [B, C, H, W], or [B, D] for `features`
Shapes = Mapping[str, tuple[int, ...]]  # the same without the batch: (C, H, W) or (D,)


@dataclass(frozen=True)
class UnmixedTeacherLogits:
    """What the teacher said of the two images that make each mixed one, before they were mixed.

    `own`, `partner`: logits [B, C]; `lam`: [B, 1], the share of `own` in the mixed image.
    """

    own: Tensor
    partner: Tensor
    lam: Tensor


@dataclass(frozen=True)
class LossInputs:
    """What the networks said of one batch, float32.

    `student`: logits [B, C]; `targets`: the labels as distributions [B, C], mixed where images are;
    `teacher`: logits [B, C] on the same pixels, or None where nobody teaches. `student_taps` and
    `teacher_taps`: the maps that some term asked for, by name. `samples`: int64 [B], which sample
    of the training part each row is. `pair`: the teacher's answers before mixing, where a term
    asked for them.
    """

    student: Tensor
    targets: Tensor
    teacher: Tensor | None = None
    student_taps: Taps = field(default_factory=dict)
    teacher_taps: Taps = field(default_factory=dict)
    samples: Tensor | None = None
    unmixed: UnmixedTeacherLogits | None = None


class LossFunction(Protocol):
    """One term. A term with parameters or state is an `nn.Module` besides."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """A scalar, float32."""


@dataclass(frozen=True)
class LossSchedule:
    """When a term counts, in shares of the training: the factor on its weight.

    0 before `begin` and from `end` on; in between it rises in a line over the share `warmup` after
    `begin`, and then changes in a line to `fade_to` at `end`.
    """

    begin: float = 0.0
    end: float = 1.0
    warmup: float = 0.0
    fade_to: float = 1.0

    def __call__(self, progress: float) -> float:
        """The factor at `progress` in [0, 1)."""
        if not self.begin <= progress < self.end:
            return 0.0
        risen = self.begin + self.warmup
        if progress < risen:
            return (progress - self.begin) / self.warmup
        return 1 + (self.fade_to - 1) * (progress - risen) / (self.end - risen)

    def is_on(self, progress: float) -> bool:
        """Whether the term is asked at all; during warm-up it is, at a factor of 0 too."""
        return self.begin <= progress < self.end


@dataclass(frozen=True)
class LossTerm:
    """A term, its share in the total, and when; `needs` is what it reads, as the tables say it."""

    weight: float
    loss: LossFunction
    schedule: LossSchedule = LossSchedule()
    needs: frozenset[str] = frozenset()


class Objective(nn.Module):
    """total = sum of weight x factor x term, over the terms that are on.

    A term of weight 0 is logged and teaches nothing; a term that is off is not asked.
    """

    def __init__(self, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.losses = nn.ModuleDict(
            {name: t.loss for name, t in terms.items() if isinstance(t.loss, nn.Module)}
        )

    @property
    def change_points(self) -> list[float]:
        """Shares of the training at which terms come or go, 0 first, all below 1."""
        whens = [term.schedule for term in self.terms.values()]
        return sorted({0.0, *(at for when in whens for at in (when.begin, when.end) if at < 1)})

    def needs(self, progress: float) -> frozenset[str]:
        """What the terms that are on at `progress` read."""
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
        """0.0, in which the parameters of the terms that are off take part, and what no map reads.

        DistributedDataParallel waits for a gradient of every parameter. Where every term that is on
        reads maps, the logits are nobody's.
        """
        idle = sum(
            (p.sum() for p in self._inactive_parameters(progress)),
            start=logits.new_zeros(()).float(),
        )
        read = (term.needs for term in self.terms.values() if term.schedule.is_on(progress))
        if all("live teacher" in needs for needs in read):
            idle = idle + logits.float().sum()
        return 0 * idle

    def clear_inactive_grads(self, progress: float) -> None:
        """Leave the parameters of the terms that are off as they are: no decay, no momentum."""
        for parameter in self._inactive_parameters(progress):
            parameter.grad = None

    def _inactive_parameters(self, progress: float) -> Iterator[nn.Parameter]:
        for name, loss in self.losses.items():
            if not self.terms[name].schedule.is_on(progress):
                yield from loss.parameters()
