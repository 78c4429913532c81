"""The weighted sum of named terms, each seen alone.

A term reads `Answers` and returns one scalar. The objective keeps every term's own, unweighted
value under its name beside the weighted total, so that what is logged always adds up to what was
minimised.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distill.events import TOTAL


@dataclass(frozen=True)
class Answers:
    """What the networks said of one batch, float32.

    `student`: logits [B, C]; `targets`: the labels as distributions [B, C], mixed where images are;
    `teacher`: logits [B, C] on the same pixels, or None where nobody teaches.
    """

    student: Tensor
    targets: Tensor
    teacher: Tensor | None = None


class Loss(Protocol):
    """One term."""

    def __call__(self, answers: Answers) -> Tensor:
        """A scalar: summed over classes, mean over the batch."""


@dataclass(frozen=True)
class Weighted:
    """A term and its share in the total."""

    weight: float
    loss: Loss


class Objective:
    """total = sum of weight x term. A term of weight 0 is logged and teaches nothing."""

    def __init__(self, terms: Mapping[str, Weighted]) -> None:
        self.terms = dict(terms)

    def __call__(self, answers: Answers) -> dict[str, Tensor]:
        values = {name: term.loss(answers) for name, term in self.terms.items()}
        weighted = [term.weight * values[name] for name, term in self.terms.items()]
        return values | {TOTAL: torch.stack(weighted).sum()}
