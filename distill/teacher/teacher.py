"""Query the frozen teacher, if there is one, for exactly the batch that the student sees.

Beyer et al., CVPR 2022, arXiv 2106.05237, call this consistent teaching: with teacher outputs for
another crop, or for the unmixed image, the student is more accurate early in the training and less
accurate at its end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.data import rng
from distill.data.loader import Batch, Loader, View
from distill.data.rng import Stream
from distill.losses.objective import UnmixedTeacherLogits
from distill.models.features import FeatureExtractor, ModelOutput


@dataclass(frozen=True)
class TeacherOutput:
    """The teacher's outputs for one batch. Outputs that no active loss term reads are empty."""

    logits: Tensor | None = None  # float32 [b, C], of the mixed images
    taps: Mapping[str, Tensor] = field(default_factory=dict)  # feature maps by name
    unmixed: UnmixedTeacherLogits | None = None  # logits of both images of each mixed pair


class LogitSource(Protocol):
    """An object that computes a teacher's outputs, or reads them from the cache."""

    uses_cache: bool  # whether logits are written to the cache and read from it

    def mixed_outputs(self, view: View, rows: Tensor, images: Tensor) -> ModelOutput:
        """Return the outputs for `images` [b, 3, H, W], the student's input.

        `images` are the samples with indices `rows` [b], augmented and mixed as in `view`.
        """

    def unmixed_logits(self, view: View, rows: Tensor) -> Tensor:
        """Return the logits [b, C] of the samples with indices `rows` [b], augmented as in `view`
        but not mixed.
        """

    @property
    def is_fully_cached(self) -> bool:
        """Whether every output that this run will need is in the cache."""

    def save(self) -> None:
        """Write new logits to the cache, if there is one. Called by all processes."""


@dataclass(frozen=True)
class Teacher:
    """Returns, for a batch, the teacher's outputs that the active loss terms read.

    `source` computes or caches them. If it is None there is no teacher, and every output is empty.
    """

    source: LogitSource | None = None

    @property
    def uses_cache(self) -> bool:
        """Whether logits are written to the cache and read from it."""
        return self.source is not None and self.source.uses_cache

    @property
    def is_fully_cached(self) -> bool:
        """Whether the run needs no more forward passes of the teacher; True without a teacher."""
        return self.source is None or self.source.is_fully_cached

    def save(self) -> None:
        """Write new logits to the cache, if there is one. Called by all processes."""
        if self.source is not None:
            self.source.save()

    def __call__(self, batch: Batch, needs: frozenset[str]) -> TeacherOutput:
        """Return the teacher's outputs for the student's input.

        `needs`: the inputs that the active loss terms read, by the names in
        `distill/recipe/loss_schema.py`.
        """
        if self.source is None:
            return TeacherOutput()
        logits: Tensor | None = None
        taps: Mapping[str, Tensor] = {}
        unmixed = None
        if needs & {"teacher", "live teacher"}:
            logits, taps = self.source.mixed_outputs(batch.view, batch.rows, batch.images)
        if "pair" in needs:
            view, rows = batch.view, batch.rows
            own, partner = (
                self.source.unmixed_logits(view, r) for r in (rows, view.partners(rows))
            )
            share = view.weight_of_own_label(rows).to(own.device)
            unmixed = UnmixedTeacherLogits(own, partner, share)
        return TeacherOutput(logits, taps, unmixed)


class FrozenTeacher(nn.Module):
    """A network without gradients that stays in eval mode even after `train()`.

    `fingerprint`: the sha256 of each weights file that was loaded, hex, joined by `+`; empty if no
    file was.
    """

    def __init__(self, net: nn.Module, fingerprint: str = "") -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.net = net.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Ignore `mode` and stay in eval mode, so that batch-norm statistics never change."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


class LiveTeacher:
    """A teacher that computes its outputs anew for every batch, without gradient.

    `loader`: augments the images for `unmixed_logits`. `taps`: names of the feature maps to return.
    The network is not part of the optimizer, of DDP or of checkpoints.
    """

    def __init__(
        self,
        teacher: FrozenTeacher,
        accelerator: Accelerator,
        loader: Loader,
        taps: tuple[str, ...] = (),
    ) -> None:
        self.extractor = FeatureExtractor(teacher.net, taps)
        self.accelerator, self.loader = accelerator, loader

    @torch.no_grad()  # not inference_mode: a loss may save these outputs for its backward
    def mixed_outputs(self, view: View, rows: Tensor, images: Tensor) -> ModelOutput:
        with self.accelerator.autocast():
            output: ModelOutput = self.extractor(images)
        return ModelOutput(
            output.logits.float(), {name: t.float() for name, t in output.taps.items()}
        )

    uses_cache = is_fully_cached = False

    def save(self) -> None:
        """Do nothing: the logits are computed anew for every batch and never cached."""

    @property
    def networks(self) -> "tuple[LiveTeacher, ...]":
        """The live teachers that may be queried: only this one."""
        return (self,)

    def unmixed_logits(self, view: View, rows: Tensor) -> Tensor:
        images = self.loader.resized(view, self.loader.augment(view, rows))
        return self.mixed_outputs(view, rows, images).logits


class OneTeacherPerView:
    """Query one of several live teachers for each view, at the cost of one forward pass.

    Blakeney et al. (2022, arXiv 2211.00683) draw one teacher per step and find that the student
    gains as much as from the whole ensemble. Here the draw is a function of the data seed and the
    view: all processes and a resumed run use the same teacher, and a view's cached logits are those
    of one teacher. `weights`: one positive weight per teacher, not necessarily normalised; teacher
    i is drawn with probability w_i / sum(w). `seed`: the data seed.
    """

    def __init__(
        self, teachers: Sequence[LiveTeacher], weights: Sequence[float], seed: int
    ) -> None:
        self.networks, self.weights, self.seed = tuple(teachers), tuple(weights), seed

    def choice(self, view: int) -> int:
        """Return the index of the teacher that is queried for a view."""
        return rng.choice(self.seed, view, Stream.TEACHER, self.weights)

    def mixed_outputs(self, view: View, rows: Tensor, images: Tensor) -> ModelOutput:
        return self.networks[self.choice(view.number)].mixed_outputs(view, rows, images)

    def unmixed_logits(self, view: View, rows: Tensor) -> Tensor:
        return self.networks[self.choice(view.number)].unmixed_logits(view, rows)

    uses_cache = is_fully_cached = False

    def save(self) -> None:
        """Do nothing: the logits are computed anew for every batch and never cached."""
