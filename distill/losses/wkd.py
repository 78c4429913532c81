"""WKD-L, logit distillation by a Wasserstein distance: Lv, Yang, Li, "Wasserstein distance rivals
Kullback-Leibler divergence for knowledge distillation", NeurIPS 2024, arXiv 2412.08139.

    L = -mean_b p_y(z_t) log p_y(z_s) + g mean_b W(p(z_s without y; T), p(z_t without y; T))
    W(a, b) = sum_ij q_ij c_ij,    q = u_i exp(-c_ij / e) v_j
    c_ij = 1 - exp(-k (1 - cos(w_i, w_j)))

student: logits z_s [B, C]; teacher: logits z_t [B, C]; targets: one label y per image. The rows of
the teacher's linear classifier, w [C, D], determine how different two classes are; u and v are the
result of `iterations` of Sinkhorn's algorithm (Cuturi, NeurIPS 2013, arXiv 1306.0895), which starts
at a constant u and makes the sums over j of q equal to the student's distribution and, less
exactly, the sums over i equal to the teacher's. There is no factor T^2. From the share `decay_from`
of the training on, g falls to 0 along a half cosine.

The authors' code (mdistiller's WKD.py) takes c from the classifier for one option of COST_MATRIX,
and from the linear CKA of the classes' features for its table on CIFAR-100; only the former is
implemented. It adds 1e-8 to c and to the denominators, which logarithms make unnecessary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, softmax

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs


class WKD(nn.Module):
    """The target class's cross-entropy, and a transport distance between the other classes.

    `gamma` g: the weight of the distance. `temperature` T: of the other classes' distributions.
    `entropy` e > 0: the regularisation of the transport; `iterations` of Sinkhorn's algorithm.
    `sharpness` k > 0. `decay_from`: a share of the training, in [0, 1]. `teacher_class_weights`:
    the weights of the teacher's linear classifier, [C, D], or None if it has none. Raises
    ValueError if it has none.
    """

    cost: Tensor

    def __init__(
        self,
        gamma: float = 800.0,
        temperature: float = 8.0,
        entropy: float = 0.05,
        iterations: int = 10,
        sharpness: float = 1.0,
        decay_from: float = 0.625,
        *,
        teacher_class_weights: Tensor | None,
    ) -> None:
        super().__init__()
        if teacher_class_weights is None:
            raise ValueError(
                "the distances between classes are those of a linear classifier's rows, and this "
                "teacher has no linear classifier"
            )
        self.gamma, self.temperature, self.decay_from = gamma, temperature, decay_from
        self.entropy, self.iterations = entropy, iterations
        self.register_buffer("cost", class_distances(teacher_class_weights, sharpness))

    def forward(self, inputs: LossInputs) -> Tensor:
        if inputs.teacher is None:
            raise ValueError("the wkd term needs a teacher's logits, and there is no teacher")
        student, teacher = at_least_float32(inputs.student), at_least_float32(inputs.teacher)
        label = inputs.targets.argmax(-1, keepdim=True)
        target = softmax(teacher, -1).gather(1, label) * log_softmax(student, -1).gather(1, label)
        others = other_classes(label, student.shape[1])
        distance = transport_distance(
            log_softmax(student.gather(1, others) / self.temperature, -1),
            log_softmax(teacher.gather(1, others) / self.temperature, -1),
            self.cost.to(student)[others[:, :, None], others[:, None, :]],
            self.entropy,
            self.iterations,
        )
        return self.current_gamma(inputs.progress) * distance.mean() - target.mean()

    def current_gamma(self, progress: float) -> float:
        """Return g at this share of the training, in [0, 1)."""
        if progress <= self.decay_from:
            return self.gamma
        share = (progress - self.decay_from) / (1 - self.decay_from)
        return self.gamma * (1 + math.cos(math.pi * share)) / 2


def class_distances(class_weights: Tensor, sharpness: float) -> Tensor:
    """Return the distances c [C, C] of classes, in [0, 1), from classifier weights [C, D]."""
    rows = normalize(at_least_float32(class_weights.detach()), dim=1)
    return 1 - torch.exp(-sharpness * (1 - rows @ rows.T).clamp_min(0))


def other_classes(label: Tensor, n_classes: int) -> Tensor:
    """Return the classes that are not the label, in order: [B, C - 1] from [B, 1]."""
    classes = torch.arange(n_classes - 1, device=label.device)
    return classes + (classes >= label).long()


def transport_distance(
    log_a: Tensor, log_b: Tensor, cost: Tensor, entropy: float, iterations: int
) -> Tensor:
    """Return the cost [B] of moving distributions a to b with entropic regularisation.

    `log_a`, `log_b`: log-probabilities [B, N]; `cost`: [B, N, N], not negative.
    """
    log_kernel = -cost / entropy
    log_u = torch.zeros_like(log_a)  # any constant gives the same result
    for _ in range(iterations):
        log_v = log_b - (log_kernel + log_u[:, :, None]).logsumexp(1)
        log_u = log_a - (log_kernel + log_v[:, None, :]).logsumexp(2)
    flow = (log_u[:, :, None] + log_kernel + log_v[:, None, :]).exp()
    return (flow * cost).sum((1, 2))
