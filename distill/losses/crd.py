"""Contrastive representation distillation: Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699, eqs.
18-19.

    s(m, v) = exp(m . v / tau) / Z
    L = - mean_b [ log h(s+) + sum_k log(1 - h(s_k)) ],   h(s) = s / (s + K / N),
        of the student's v among the teacher's m, plus of the teacher's v among the student's m

student: features [B, D_s]; teacher: features [B, D_t]; targets: not read; samples: int64 [B].
v are a network's features, projected linearly to `dims` numbers and scaled to norm 1. m are the
rows of two memory banks [N, dims], one per network. A row is the running mean of one training
image's v, scaled to norm 1; `momentum` is the weight of the old mean. s+ is the score of the
image's own row, s_k are the scores of the rows of K other images, the negatives. Negatives are of
other classes, as in the authors' loader, but drawn with replacement: drawing without replacement
would need to sort N random numbers per image. Z is N times the mean score of the first batch, over
all processes, and constant from then on. It is a buffer, so that a resumed run has the same Z.
log h is computed as logsigmoid(log s - log(K / N)), which is finite for every score; the authors
add 1e-7 instead. Negatives are drawn by torch's generator of the device, which the training loop
seeds before each forward pass. Each process compares its own images with negatives of its own; the
banks are updated with the images of all processes, so that they are equal on all processes. A
separate generator initialises the banks, so that they do not change the student's initial weights.
Memory: the authors gather [B, K, dims] rows twice, 8.6 GB at batch 512. Here one matrix product
computes all B x N scores, of which K per image are selected: forward and backward take 180 MiB at
batch 128 and 588 MiB at 512 for N = 45,000 and K = 16,384, and the banks, 2 N dims floats, 44 MiB.
torchdistill's CRDLoss has the same formula, with 1e-7; its draw of negatives fails, since it reads
an attribute that is never set.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.gather import whole_batch_without_grad
from distill.losses.objective import LossInputs, Shapes

BANK_SEED = 0


class CRD(nn.Module):
    """Match features by distinguishing each image from many images of other classes.

    `dims`: size of the projected features; `negatives`: images of other classes per image (K);
    `momentum`: weight of the old mean in the memory banks. `student_shapes`, `teacher_shapes`: the
    shape of each map by name, without the batch. `labels`: int64 [N], the labels of the training
    images. Raises ValueError if all are of one class.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    student_z: Tensor
    teacher_z: Tensor
    by_class: Tensor
    before: Tensor
    within: Tensor
    labels: Tensor

    def __init__(
        self,
        student_tap: str = "features",
        teacher_tap: str = "features",
        dims: int = 128,
        negatives: int = 16_384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
        labels: Tensor,
    ) -> None:
        super().__init__()
        counts = labels.bincount()
        if counts.max() == len(labels):
            raise ValueError(
                "the crd term contrasts images of different classes, and all "
                f"{len(labels)} are of one class"
            )
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.student_embed = nn.Linear(math.prod(student_shapes[student_tap]), dims)
        self.teacher_embed = nn.Linear(math.prod(teacher_shapes[teacher_tap]), dims)
        self._register_banks(len(labels), dims)
        self._register_classes(labels, counts)

    def _register_banks(self, n: int, dims: int) -> None:
        """Register the two memory banks [n, dims], random rows of norm 1, and their Z."""
        generator = torch.Generator().manual_seed(BANK_SEED)
        for name in ("student", "teacher"):
            bank = torch.randn(n, dims, generator=generator, device="cpu")
            self.register_buffer(f"{name}_bank", normalize(bank))
            self.register_buffer(
                f"{name}_z", torch.zeros((), device="cpu")
            )  # 0 before the first batch

    def _register_classes(self, labels: Tensor, counts: Tensor) -> None:
        """Register the samples sorted by class, from which negatives are drawn.

        `by_class` [N] has the sample indices: the range of class c begins at `before[c]` and has
        `within[c]` entries. `counts` [C]: the number of samples of each class.
        """
        layout = {
            "labels": labels,
            "by_class": labels.argsort(stable=True),
            "before": counts.cumsum(0) - counts,
            "within": counts,
        }
        for name, tensor in layout.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, inputs: LossInputs) -> Tensor:
        if inputs.samples is None:
            raise ValueError("the crd term needs each image's sample number; none was given")
        student = self._embed(self.student_embed, inputs.student_taps[self.student_tap])
        teacher = self._embed(self.teacher_embed, inputs.teacher_taps[self.teacher_tap])
        chosen = torch.cat([inputs.samples[:, None], self._negatives(inputs.samples)], dim=1)
        loss = self._contrast(student, self.teacher_bank, self.teacher_z, chosen)
        loss = loss + self._contrast(teacher, self.student_bank, self.student_z, chosen)
        if self.training:
            self._update_banks(inputs.samples, student.detach(), teacher.detach())
        return loss

    def _embed(self, embed: nn.Module, features: Tensor) -> Tensor:
        return normalize(embed(at_least_float32(features).flatten(1)), dim=-1)

    def _negatives(self, samples: Tensor) -> Tensor:
        """Draw K samples of other classes for each of `samples` [b], with replacement.

        Returns sample indices, int64 [b, K].
        """
        label = self.labels[samples]
        before, within = self.before[label, None], self.within[label, None]
        n_others = len(self.labels) - within
        uniform = torch.rand(len(samples), self.negatives, device=samples.device)
        index = (uniform * n_others).long() % n_others  # a product may round up to n_others
        return self.by_class[torch.where(index < before, index, index + within)]

    def _contrast(self, anchors: Tensor, bank: Tensor, z: Tensor, chosen: Tensor) -> Tensor:
        """Return the loss of one network's features against the other network's bank.

        `anchors` [b, dims]: features of norm 1; `z`: the constant Z of the bank, which the first
        batch sets. `chosen` [b, 1 + K]: rows of the bank, first the sample's own, then the
        negatives.
        """
        # A copy, since the bank is updated in place before the backward pass reads it.
        scores = (anchors @ bank.clone().T).gather(1, chosen) / self.temperature  # log(s Z)
        with torch.no_grad():  # only the first batch sets z; a Python `if` would synchronise
            mean = whole_batch_without_grad(scores.exp().mean()[None]).mean()
            z.copy_(torch.where(z > 0, z, mean * len(bank)))
        odds = scores - (z * self.negatives / len(bank)).log()  # h = sigmoid(odds)
        positive, negative = logsigmoid(odds[:, 0]), logsigmoid(-odds[:, 1:]).sum(1)
        return -(positive + negative).mean()

    @torch.no_grad()
    def _update_banks(self, samples: Tensor, student: Tensor, teacher: Tensor) -> None:
        rows = whole_batch_without_grad(samples)
        for bank, new in ((self.student_bank, student), (self.teacher_bank, teacher)):
            mean = self.momentum * bank[rows] + (1 - self.momentum) * whole_batch_without_grad(new)
            bank[rows] = normalize(mean, dim=-1)
