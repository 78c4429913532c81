"""VGG for images of 32 pixels, with batch norm and one linear layer.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, arXiv 1409.1556, table 1, columns A, B, D and E; `vgg8` has one convolution per stage. As in
the networks of the CRD benchmark (HobbitLong/RepDistiller): the convolutions have biases, the last
two stages have the same resolution, and one linear layer reads the pooled maps.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from students.normalize_images import Normalize

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # of each stage, by the number of layers with weights
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
WITHOUT_POOL = (0, 4)  # these stages keep the resolution of their input


class VGG(nn.Module):
    """Map images [B, 3, H, W] in [0, 1] to logits [B, classes]; `depth` is a key of CONVOLUTIONS.

    Taps: `stem` (the first stage), `stages.0` ... `stages.3`, `maps` (the last stage again) and
    `features`, the pooled maps; all of them after a ReLU. H and W are at least 8.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        first, *others = (
            nn.Sequential(*_layers(stage, n)) for stage, n in enumerate(CONVOLUTIONS[depth])
        )
        self.normalize = Normalize()
        self.stem = first
        self.stages = nn.Sequential(*others)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(WIDTHS[-1], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(self.stem(self.normalize(images)))
        logits: Tensor = self.head(self.pool(maps))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return, by tap name, the module whose output is that tap."""
        stages = {f"stages.{i}": stage for i, stage in enumerate(self.stages)}
        return {"stem": self.stem, **stages, "maps": self.stages, "features": self.pool}


def initialise(net: nn.Module) -> None:
    """Draw the initial weights as the benchmark's VGG and MobileNetV2 do.

    Convolutions: normal with variance 2 / (kernel area * outputs); linear layers: normal with
    standard deviation 0.01. Biases are 0.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            # torch's fan_out is divided by the groups; the benchmark's is not
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _layers(stage: int, convolutions: int) -> Iterator[nn.Module]:
    if stage not in WITHOUT_POOL:
        yield nn.MaxPool2d(2)
    inputs = WIDTHS[stage - 1] if stage else 3
    for _ in range(convolutions):
        yield nn.Conv2d(inputs, WIDTHS[stage], 3, padding=1)
        yield nn.BatchNorm2d(WIDTHS[stage])
        yield nn.ReLU(inplace=True)
        inputs = WIDTHS[stage]
