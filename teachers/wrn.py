"""Wide residual networks in their original pre-activation form.

Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146, table 1.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError
from students.normalize_images import Normalize
from teachers.wrn_cost import STEM_WIDTH


class WideResNet(nn.Module):
    """The network WRN-`depth`-`widen`: images [B, 3, H, W] in [0, 1] to logits [B, classes].

    `depth` = 6n + 4 counts convolutions: two in each of the n blocks of three stages, the stem, and
    the skip convolutions of the three widening blocks. `widen` multiplies the channels 16, 32, 64
    of the stages. `dropout`, a probability in [0, 1), acts before the second convolution of each
    block. The taps `stem` and `stages.0` ... `stages.2` are before the next batch norm and ReLU, so
    they have negative values; `maps` is after the last batch norm and ReLU, before pooling. Raises
    UserError if `depth`, `widen` or `dropout` is out of range.
    """

    def __init__(
        self, depth: int = 28, widen: int = 10, dropout: float = 0.0, classes: int = 10
    ) -> None:
        super().__init__()
        _check(depth, widen, dropout)
        self.depth, self.widen, self.dropout = depth, widen, dropout
        blocks = (depth - 4) // 6
        widths = (STEM_WIDTH, 16 * widen, 32 * widen, 64 * widen)
        self.normalize = Normalize()
        self.stem = nn.Conv2d(3, STEM_WIDTH, 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                _stage(widths[i], widths[i + 1], blocks, stride=1 if i == 0 else 2, dropout=dropout)
                for i in range(3)
            )
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.activation = nn.ReLU()  # not in place: both its input and its output may be taps
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stages(self.stem(self.normalize(images)))
        logits: Tensor = self.head(self.pool(self.activation(self.norm(maps))))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are available as taps, by tap name."""
        stages = {f"stages.{i}": stage for i, stage in enumerate(self.stages)}
        return {"stem": self.stem, **stages, "maps": self.activation, "features": self.pool}


class PreActivationBlock(nn.Module):
    """Compute skip + (BN-ReLU-conv, twice): [B, inputs, H, W] to [B, outputs, H/s, W/s].

    s is the stride. The skip is the identity. If the block changes the shape, the skip is instead a
    1x1 convolution of the input after batch norm and ReLU, as in the authors' code.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.skip = (
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, maps: Tensor) -> Tensor:
        # In place, since nothing else reads the outputs of the norms and of the last convolution,
        # and no gradient is computed from them.
        active = F.relu(self.norm1(maps), inplace=True)
        skip = maps if self.skip is None else self.skip(active)
        hidden = F.relu(self.norm2(self.conv1(active)), inplace=True)
        residual: Tensor = self.conv2(self.dropout(hidden))
        return residual.add_(skip)


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int, dropout: float) -> nn.Sequential:
    first = PreActivationBlock(inputs, outputs, stride, dropout)
    rest = (PreActivationBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _check(depth: int, widen: int, dropout: float) -> None:
    faults = []
    if depth < 10 or depth % 6 != 4:
        below = max(10, depth - (depth - 4) % 6)
        faults.append(f"depth = {depth} is not 6n + 4; the next are {below} and {below + 6}")
    if widen < 1:
        faults.append(f"widen = {widen} must be 1 or more; 10 is WRN-28-10's")
    if not 0 <= dropout < 1:
        faults.append(f"dropout = {dropout} must be at least 0 and below 1")
    if faults:
        raise UserError("the wide residual network cannot be built: " + "; ".join(faults))
