"""Factor transfer: Kim, Park, Kwak, "Paraphrasing complex network: network compression via factor
transfer", NeurIPS 2018, arXiv 1802.04977, in the form of HobbitLong/RepDistiller
(distiller_zoo/FT.py).

    a(F)  = mean over channels of F^2, flattened over pixels, of L2 norm 1        [B, HW]
    L = mean | a(T(F_s)) - a(E(F_t)) |  +  reconstruction mean (D(E(F_t)) - F_t)^2

student: one map F_s [B, C_s, H, W]; teacher: one map F_t [B, C_t, H, W]; targets: not read.
The paraphraser is an autoencoder of the teacher's maps: an encoder E to rate x C_t channels, the
factors, and a decoder D. The translator T maps the student's maps to as many channels. All have
three 3x3 convolutions and LeakyReLU(0.1), T also batch norm, as in RepDistiller. The first term
trains the student and T, but not E; the second one trains E and D. The larger of the two factors
is average-pooled, as in RepDistiller.
Departures: the paper and RepDistiller train the paraphraser alone, for 30 epochs in RepDistiller,
and do not change it when the student is trained. Here both are trained at the same time, so that
the factors change, most of all at the beginning; a schedule `when.warmup` reduces the effect on the
student, but also trains the paraphraser more slowly. RepDistiller's learning rate is 0.01 for the
paraphraser and 0.05 for the student, with a weight of 200 of the first term; `reconstruction` =
0.001 has this ratio at the weight 200. The paper's first term compares the factors of norm 1 in all
their channels; RepDistiller's, with which the table of the CRD paper was made, compares a.
Memory: about fourteen maps of the teacher's width, 284 MiB at batch 128, 1.1 GiB at 512 for 640
channels of 8x8. The paraphraser of these maps has 12.9 million parameters.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss, normalize

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs, Shapes
from distill.losses.resize_feature_maps import pool_to_same_size

SLOPE = 0.1  # of LeakyReLU for negative values


class FT(nn.Module):
    """Match the energy of the student's translated maps to that of the teacher's factors.

    `rate`: channels of the factors as a share of the teacher's; `reconstruction`: weight of the
    paraphraser's own loss. `student_shapes`, `teacher_shapes`: the shape (C, H, W) of each map by
    name.
    """

    def __init__(
        self,
        student_tap: str = "stages.2",
        teacher_tap: str = "stages.2",
        rate: float = 0.5,
        reconstruction: float = 0.001,
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
    ) -> None:
        super().__init__()
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.reconstruction = reconstruction
        ours, theirs = student_shapes[student_tap][0], teacher_shapes[teacher_tap][0]
        factors = max(1, int(rate * theirs))
        self.translator = _layers(nn.Conv2d, (ours, ours, factors, factors), norm=True)
        self.encoder = _layers(nn.Conv2d, (theirs, theirs, factors, factors), norm=False)
        self.decoder = _layers(nn.ConvTranspose2d, (factors, factors, theirs, theirs), norm=False)

    def forward(self, inputs: LossInputs) -> Tensor:
        maps = at_least_float32(inputs.teacher_taps[self.teacher_tap])
        factors = self.encoder(maps)
        translated = self.translator(at_least_float32(inputs.student_taps[self.student_tap]))
        student, teacher = pool_to_same_size(translated, factors.detach())
        transfer = l1_loss(_energy(student), _energy(teacher))
        return transfer + self.reconstruction * mse_loss(self.decoder(factors), maps)


def _energy(factors: Tensor) -> Tensor:
    """Return a of the module, [B, HW], of factors [B, C, H, W]."""
    return normalize(factors.square().mean(1).flatten(1), dim=-1)


def _layers(
    convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: tuple[int, ...], *, norm: bool
) -> nn.Sequential:
    """Return 3x3 convolutions from each width to the next, each with LeakyReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers.append(convolution(inputs, outputs, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)
