"""MobileNetV2 for images of 32 pixels, as in the CRD benchmark.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv
1801.04381, table 2. As in HobbitLong/RepDistiller: all widths but the last are multiplied, the
first block has its 1x1 convolution although it does not expand, the second stage keeps its
resolution, and the activation is ReLU instead of ReLU6.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from networks.vgg import initialise
from students.normalize_images import Normalize

STEM_WIDTH, LAST_WIDTH = 32, 1280
STAGES = (  # of each: (expansion, width, blocks, stride of the first), one or two groups of blocks
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetV2(nn.Module):
    """Map images [B, 3, H, W] in [0, 1] to logits [B, classes].

    `width`: factor on the number of channels, above 0. The stem halves the resolution. Taps:
    `stem`, `stages.0` ... `stages.3` (sums of blocks, without activation: they have negative
    values), `maps` (after the last convolution and ReLU) and `features`, the pooled maps.
    """

    def __init__(self, width: float = 0.5, classes: int = 10) -> None:
        super().__init__()
        self.normalize = Normalize()
        inputs = int(STEM_WIDTH * width)
        self.stem = nn.Sequential(*convolution(3, inputs, 3, stride=2))
        stages = []
        for groups in STAGES:
            blocks: list[nn.Module] = []
            for expansion, channels, n, stride in groups:
                outputs = int(channels * width)
                for i in range(n):
                    blocks.append(
                        InvertedResidual(inputs, outputs, stride if i == 0 else 1, expansion)
                    )
                    inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        last = max(LAST_WIDTH, int(LAST_WIDTH * width))
        self.last = nn.Sequential(*convolution(inputs, last, 1))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(last, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.last(self.stages(self.stem(self.normalize(images))))
        logits: Tensor = self.head(self.pool(maps))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return, by tap name, the module whose output is that tap."""
        stages = {f"stages.{i}": stage for i, stage in enumerate(self.stages)}
        return {"stem": self.stem, **stages, "maps": self.last, "features": self.pool}


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter by a depthwise 3x3, project by 1x1: [B, inputs, H, W] to [B, outputs,
    H / stride, W / stride]. The input is added if the shape does not change.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = nn.Sequential(
            *convolution(inputs, inner, 1),
            *convolution(inner, inner, 3, stride=stride, groups=inner),
            *convolution(inner, outputs, 1, has_activation=False),
        )
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.residual(maps)
        return residual + maps if self.has_skip else residual


def convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    has_activation: bool = True,
) -> Iterator[nn.Module]:
    """Yield a padded convolution without bias, its batch norm and, by default, a ReLU."""
    padding = kernel // 2
    yield nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=False
    )
    yield nn.BatchNorm2d(outputs)
    if has_activation:
        yield nn.ReLU(inplace=True)
