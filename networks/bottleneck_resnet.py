"""ResNet-50, 101 and 152 for images of 32 pixels, as in the CRD benchmark.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, table 1,
with bottleneck blocks. As in HobbitLong/RepDistiller (`resnetv2.py`): the stem is a 3x3
convolution without stride and without pooling.
"""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from networks.mobilenet_v2 import convolution
from students.normalize_images import Normalize

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


class BottleneckResNet(nn.Module):
    """Map images [B, 3, H, W] in [0, 1] to logits [B, classes]; `depth` is a key of BLOCKS.

    Taps: `stem`, `stages.0` ... `stages.3`, `maps` (the last stage again) and `features`, the
    pooled maps; all of them after a ReLU.
    """

    def __init__(self, depth: int = 50, classes: int = 10) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stem = nn.Sequential(*convolution(3, WIDTHS[0], 3))
        before = (WIDTHS[0], *(EXPANSION * width for width in WIDTHS))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(*_blocks(before[i], WIDTHS[i], n, stride=1 if i == 0 else 2))
                for i, n in enumerate(BLOCKS[depth])
            )
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(EXPANSION * WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(self.stem(self.normalize(images)))
        logits: Tensor = self.head(self.pool(maps))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return, by tap name, the module whose output is that tap."""
        stages = {f"stages.{i}": stage for i, stage in enumerate(self.stages)}
        return {"stem": self.stem, **stages, "maps": self.stages, "features": self.pool}


class Bottleneck(nn.Module):
    """Compute relu(skip(x) + residual(x)) with 1x1, 3x3 and 1x1 convolutions: [B, inputs, H, W] to
    [B, 4 * width, H / stride, W / stride].
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.residual = nn.Sequential(
            *convolution(inputs, width, 1),
            *convolution(width, width, 3, stride=stride),
            *convolution(width, outputs, 1, has_activation=False),
        )
        changes_shape = stride != 1 or inputs != outputs
        self.skip = (
            nn.Sequential(*convolution(inputs, outputs, 1, stride=stride, has_activation=False))
            if changes_shape
            else nn.Identity()
        )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.residual(maps) + self.skip(maps))


def _blocks(inputs: int, width: int, n: int, stride: int) -> Iterator[nn.Module]:
    yield Bottleneck(inputs, width, stride)
    for _ in range(n - 1):
        yield Bottleneck(EXPANSION * width, width, 1)
