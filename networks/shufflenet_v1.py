"""ShuffleNet (version 1) for images of 32 pixels, as in the CRD benchmark.

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
CVPR 2018, arXiv 1707.01083, table 1 with three groups. As in HobbitLong/RepDistiller: the stem is a
1x1 convolution without pooling.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.mobilenet_v2 import convolution
from students.normalize_images import Normalize

GROUPS = 3
STEM_WIDTH = 24
WIDTHS = (240, 480, 960)
BLOCKS = (4, 8, 4)


class ShuffleNetV1(nn.Module):
    """Map images [B, 3, H, W] in [0, 1] to logits [B, classes].

    Each of the three stages halves the resolution. Taps: `stem`, `stages.0` ... `stages.2`, `maps`
    (the last stage again) and `features`, the pooled maps; all of them after a ReLU.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stem = nn.Sequential(*convolution(3, STEM_WIDTH, 1))
        before = (STEM_WIDTH, *WIDTHS)
        self.stages = nn.Sequential(
            *(nn.Sequential(*_blocks(before[i], WIDTHS[i], n)) for i, n in enumerate(BLOCKS))
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(WIDTHS[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(self.stem(self.normalize(images)))
        logits: Tensor = self.head(self.pool(maps))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return, by tap name, the module whose output is that tap."""
        stages = {f"stages.{i}": stage for i, stage in enumerate(self.stages)}
        return {"stem": self.stem, **stages, "maps": self.stages, "features": self.pool}


class GroupedBottleneck(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1 beside a skip, then ReLU.

    Maps [B, inputs, H, W] to [B, outputs, H, W], adding the input. If `halves`, to [B, outputs,
    H / 2, W / 2]: the average-pooled input is concatenated instead of added.
    """

    def __init__(self, inputs: int, outputs: int, halves: bool) -> None:
        super().__init__()
        added = outputs - inputs if halves else outputs
        inner = added // 4
        groups = 1 if inputs == STEM_WIDTH else GROUPS  # the stem has too few channels
        self.skip = nn.AvgPool2d(3, stride=2, padding=1) if halves else nn.Identity()
        self.residual = nn.Sequential(
            *convolution(inputs, inner, 1, groups=groups),
            ChannelShuffle(groups),
            *convolution(inner, inner, 3, stride=2 if halves else 1, groups=inner),
            *convolution(inner, added, 1, groups=GROUPS, has_activation=False),
        )
        self.halves = halves

    def forward(self, maps: Tensor) -> Tensor:
        residual, skip = self.residual(maps), self.skip(maps)
        return F.relu(torch.cat([residual, skip], 1) if self.halves else residual + skip)


class ChannelShuffle(nn.Module):
    """Reorder channels so that the next grouped convolution reads from each of `groups` groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, maps: Tensor) -> Tensor:
        return F.channel_shuffle(maps, self.groups)


def _blocks(inputs: int, outputs: int, n: int) -> Iterator[nn.Module]:
    yield GroupedBottleneck(inputs, outputs, halves=True)
    for _ in range(n - 1):
        yield GroupedBottleneck(outputs, outputs, halves=False)
