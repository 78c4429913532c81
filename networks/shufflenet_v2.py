"""ShuffleNetV2 for images of 32 pixels, as in the CRD benchmark.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018,
arXiv 1807.11164, table 5, width 1. As in HobbitLong/RepDistiller: the stem is a 1x1 convolution
without pooling.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.mobilenet_v2 import convolution
from students.normalize_images import Normalize

STEM_WIDTH, LAST_WIDTH = 24, 1024
WIDTHS = (116, 232, 464)
BLOCKS = (4, 8, 4)  # the first of each halves the resolution


class ShuffleNetV2(nn.Module):
    """Map images [B, 3, H, W] in [0, 1] to logits [B, classes].

    Each of the three stages halves the resolution. Taps: `stem`, `stages.0` ... `stages.2`, `maps`
    (after the last 1x1 convolution) and `features`, the pooled maps; all of them after a ReLU.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stem = nn.Sequential(*convolution(3, STEM_WIDTH, 1))
        before = (STEM_WIDTH, *WIDTHS)
        self.stages = nn.Sequential(
            *(nn.Sequential(*_blocks(before[i], WIDTHS[i], n)) for i, n in enumerate(BLOCKS))
        )
        self.last = nn.Sequential(*convolution(WIDTHS[-1], LAST_WIDTH, 1))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(LAST_WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.last(self.stages(self.stem(self.normalize(images))))
        logits: Tensor = self.head(self.pool(maps))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return, by tap name, the module whose output is that tap."""
        stages = {f"stages.{i}": stage for i, stage in enumerate(self.stages)}
        return {"stem": self.stem, **stages, "maps": self.last, "features": self.pool}


class SplitBlock(nn.Module):
    """Transform one half of the channels, concatenate both halves, shuffle: [B, C, H, W] to the
    same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *convolution(half, half, 1),
            *convolution(half, half, 3, groups=half, has_activation=False),
            *convolution(half, half, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        unchanged, transformed = maps.chunk(2, 1)
        return F.channel_shuffle(torch.cat([unchanged, self.branch(transformed)], 1), 2)


class HalvingBlock(nn.Module):
    """Transform the input in two branches, concatenate, shuffle: [B, inputs, H, W] to [B, outputs,
    H / 2, W / 2].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.short = nn.Sequential(
            *convolution(inputs, inputs, 3, stride=2, groups=inputs, has_activation=False),
            *convolution(inputs, half, 1),
        )
        self.long = nn.Sequential(
            *convolution(inputs, half, 1),
            *convolution(half, half, 3, stride=2, groups=half, has_activation=False),
            *convolution(half, half, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return F.channel_shuffle(torch.cat([self.short(maps), self.long(maps)], 1), 2)


def _blocks(inputs: int, outputs: int, n: int) -> Iterator[nn.Module]:
    yield HalvingBlock(inputs, outputs)
    for _ in range(n - 1):
        yield SplitBlock(outputs)
