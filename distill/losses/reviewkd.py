"""Knowledge review: Chen, Liu, Zhao, Jia, "Distilling knowledge via knowledge review", CVPR 2021,
arXiv 2104.09044, eqs. 5-7, figures 3 and 4.

    L = sum over maps of  HCL( out_i, F_t^i ),     from the deepest map to the shallowest
    x_i = a x'_i + b up(x_{i+1}),  (a, b) = sigmoid(conv[x'_i, up(x_{i+1})]),  x' = conv1x1(F_s^i)
    out_i = conv3x3(x_i)
    HCL(u, v) = ( mse(u, v) + sum_l w_l mse(pool_l u, pool_l v) ) / (1 + sum_l w_l)

student: maps F_s^i [B, C_i, H, W], shallow to deep; the last may be features [B, D], treated as 1x1
maps; teacher: as many maps F_t^i; targets: not read.
Each map of the teacher is compared with an attention-based fusion (ABF) of the student's map at the
same level i and all deeper maps. up() enlarges a map to the size of the next shallower one. pool_l
is average pooling to l x l pixels, for those l of 4, 2, 1 that are smaller than the map; w_l is
1/2, 1/4, 1/8 for the first, second and third of these. `width` is the number of channels of the
fused maps (at most 512 in the paper). If two maps differ in size, the larger one is pooled. The
maps are compared as the networks output them, without another activation. The stages of a WRN end
before an activation, as those of the teacher in the authors' code; a residual student's stages end
after one.
Memory: about four maps of the teacher's width per tap, 4 B C_t H W floats: 796 MiB at batch 128,
3.1 GiB at 512 for three stages of WRN-28-10.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, mse_loss

from distill.losses.at_least_float32 import at_least_float32
from distill.losses.objective import LossInputs, Shapes
from distill.losses.resize_feature_maps import pool_to_same_size

TAPS = ("stages.0", "stages.1", "stages.2", "features")
SIDES = (4, 2, 1)  # height and width of the pooled maps in pixels


class ReviewKD(nn.Module):
    """Match each teacher map by a fusion of the student's map at its level and all deeper maps.

    `student_taps`, `teacher_taps`: the names of the maps, shallow to deep; `width`: channels of the
    fused maps. `student_shapes`, `teacher_shapes`: the shape (C, H, W) or (D,) of each map by name.
    """

    def __init__(
        self,
        student_taps: tuple[str, ...] = TAPS,
        teacher_taps: tuple[str, ...] = TAPS,
        width: int = 64,
        *,
        student_shapes: Shapes,
        teacher_shapes: Shapes,
    ) -> None:
        super().__init__()
        self.student_taps, self.teacher_taps = student_taps, teacher_taps
        *_, deepest = student_taps
        self.fusions = nn.ModuleList(
            Fusion(student_shapes[a][0], width, teacher_shapes[b][0], joins=a != deepest)
            for a, b in zip(student_taps, teacher_taps, strict=True)
        )

    def forward(self, inputs: LossInputs) -> Tensor:
        levels = list(zip(self.fusions, self.student_taps, self.teacher_taps, strict=True))
        losses, deeper = [], None
        for fusion, a, b in reversed(levels):
            out, deeper = fusion(_as_map(inputs.student_taps[a]), deeper)
            losses.append(hierarchical(*pool_to_same_size(out, _as_map(inputs.teacher_taps[b]))))
        return torch.stack(losses).sum()


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a map with the fused map of the next deeper level.

    Returns the fused map twice: with `outputs` channels, to compare with the teacher's map, and
    with `width` channels, for the next shallower level. `inputs`: channels of the student's map.
    `joins`: whether there is a deeper level.
    """

    def __init__(self, inputs: int, width: int, outputs: int, *, joins: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = nn.Conv2d(2 * width, 2, 1) if joins else None
        self.expand = nn.Sequential(
            nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, maps: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        fused = self.reduce(maps)
        if self.attention is not None and deeper is not None:
            deeper = interpolate(deeper, size=fused.shape[-2:], mode="nearest")
            own, review = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid().chunk(2, 1)
            fused = own * fused + review * deeper
        return self.expand(fused), fused


def hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the hierarchical context loss (HCL) of two maps [B, C, H, W].

    It is the weighted mean of their mean squared errors at several resolutions.
    """
    sides = [side for side in SIDES if side < student.shape[-1]]
    levels = {side: 2.0 ** -(i + 1) for i, side in enumerate(sides)}  # as in the authors' code
    total = mse_loss(student, teacher)
    for side, weight in levels.items():
        u, v = (adaptive_avg_pool2d(maps, side) for maps in (student, teacher))
        total = total + weight * mse_loss(u, v)
    return total / (1 + sum(levels.values()))


def _as_map(tap: Tensor) -> Tensor:
    """Return maps unchanged, and features [B, D] as 1x1 maps [B, D, 1, 1]."""
    return at_least_float32(tap if tap.dim() == 4 else tap[:, :, None, None])
