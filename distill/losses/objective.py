"""Compute the weighted sum of loss terms, and each term unweighted for the log.

A term reads `LossInputs` and returns one scalar. The objective returns the unweighted value of
every term by name, and the weighted total that is minimised. The total is the sum of the logged
values, each multiplied by its term's weight and schedule factor.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from distill.events import TOTAL

Taps = Mapping[str, Tensor]  # name -> [B, C, H, W], or [B, D] for `features`
Shapes = Mapping[str, tuple[int, ...]]  # name -> shape without the batch: (C, H, W) or (D,)


@dataclass(frozen=True)
class UnmixedTeacherLogits:
    """The teacher's logits for the two images of each mixed image, before they were mixed.

    `own`, `partner`: logits [B, C] for the sample itself and for the image mixed into it. `lam`:
    [B, 1], the weight of the sample itself in the mixed image.
    """

    own: Tensor
    partner: Tensor
    lam: Tensor


@dataclass(frozen=True)
class LossInputs:
    """The inputs of the loss terms for one batch, float32.

    `student`: logits [B, C]. `targets`: the labels as distributions [B, C], mixed like the images.
    `teacher`: logits [B, C] on the same pixels, or None without a teacher. `student_taps`,
    `teacher_taps`: the feature maps that the terms read, by name. `samples`: int64 [B], the index
    of each image in the training images. `unmixed`: the teacher's logits for the unmixed images, if
    a term reads them. `progress`: the share of the training that is done, in [0, 1); the objective
    sets it.
    """

    student: Tensor
    targets: Tensor
    teacher: Tensor | None = None
    student_taps: Taps = field(default_factory=dict)
    teacher_taps: Taps = field(default_factory=dict)
    samples: Tensor | None = None
    unmixed: UnmixedTeacherLogits | None = None
    progress: float = 0.0


class LossFunction(Protocol):
    """Computes a loss term. A term with parameters or state is an `nn.Module`."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the loss, a float32 scalar."""


@dataclass(frozen=True)
class LossSchedule:
    """The factor on a term's weight as a function of the training's progress.

    `begin`, `end` and `warmup` are fractions of the training. Before `begin` and from `end` on the
    factor is 0. It increases linearly from 0 at `begin` to 1 at `begin` + `warmup`, and then
    changes linearly to `fade_to` at `end`.
    """

    begin: float = 0.0
    end: float = 1.0
    warmup: float = 0.0
    fade_to: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the factor at `progress` in [0, 1), the fraction of the training that is done."""
        if not self.begin <= progress < self.end:
            return 0.0
        warm = self.begin + self.warmup
        if progress < warm:
            return (progress - self.begin) / self.warmup
        return 1 + (self.fade_to - 1) * (progress - warm) / (self.end - warm)

    def is_on(self, progress: float) -> bool:
        """Whether the term is computed at `progress`: from `begin` to `end`, even at factor 0."""
        return self.begin <= progress < self.end


@dataclass(frozen=True)
class LossTerm:
    """A loss term with its weight and schedule.

    `needs`: the names of the inputs that it reads, as defined in loss_schema.py.
    """

    weight: float
    loss: LossFunction
    schedule: LossSchedule = LossSchedule()
    needs: frozenset[str] = frozenset()


class Objective(nn.Module):
    """Computes the sum of weight x schedule factor x loss over the terms that are on.

    A term is on from the begin to the end of its schedule. A term of weight 0 is logged and has no
    gradient; a term that is off is not computed. The result has each term's unweighted value by
    name, and the sum under `total`.
    """

    def __init__(self, terms: Mapping[str, LossTerm]) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.losses = nn.ModuleDict(
            {name: t.loss for name, t in terms.items() if isinstance(t.loss, nn.Module)}
        )

    @property
    def change_points(self) -> list[float]:
        """Return 0 and the fractions of the training below 1 at which a term begins or ends."""
        schedules = [term.schedule for term in self.terms.values()]
        return sorted({0.0, *(at for s in schedules for at in (s.begin, s.end) if at < 1)})

    def needs(self, progress: float) -> frozenset[str]:
        """Return the names of the inputs read by the terms that are on at `progress`."""
        on = (term.needs for term in self.terms.values() if term.schedule.is_on(progress))
        return frozenset[str]().union(*on)

    def forward(self, inputs: LossInputs, progress: float = 0.0) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        inputs = replace(inputs, progress=progress)
        weighted = [self._inactive_zero(progress, inputs.student)]
        # Losses are computed in float32, whatever the precision of the networks: in bfloat16 Gram
        # matrices and small differences would lose most of their digits.
        with torch.autocast(inputs.student.device.type, enabled=False):
            for name, term in self.terms.items():
                if term.schedule.is_on(progress):
                    values[name] = term.loss(inputs)
                    weighted.append(term.weight * term.schedule(progress) * values[name])
        return values | {TOTAL: torch.stack(weighted).sum()}

    def _inactive_zero(self, progress: float, logits: Tensor) -> Tensor:
        """Return 0.0, computed from the parameters of inactive terms and from unread logits.

        This gives these parameters a gradient of 0: DistributedDataParallel waits for a gradient of
        every parameter. The logits are unread if every term that is on reads feature maps.
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
        """Set the gradients of the parameters of terms that are off to None.

        Otherwise weight decay and momentum would change these parameters.
        """
        for parameter in self._inactive_parameters(progress):
            parameter.grad = None

    def _inactive_parameters(self, progress: float) -> Iterator[nn.Parameter]:
        for name, loss in self.losses.items():
            if not self.terms[name].schedule.is_on(progress):
                yield from loss.parameters()
