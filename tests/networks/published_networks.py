"""Networks with the names and the order of layers of the CRD benchmark's code, for tests.

Written from its layout (HobbitLong/RepDistiller): they stand for another program's networks, and
share no code with `networks/`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(i: int, o: int, k: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=bias)


def shuffled(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Basic(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(i, o, 3, stride), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = conv(o, o, 3), nn.BatchNorm2d(o)
        changes = stride != 1 or i != o
        self.downsample: Any = (
            nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o)) if changes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(i, o, 1), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = conv(o, o, 3, stride), nn.BatchNorm2d(o)
        self.conv3, self.bn3 = conv(o, 4 * o, 1), nn.BatchNorm2d(4 * o)
        self.shortcut = nn.Sequential()
        if stride != 1 or i != 4 * o:
            self.shortcut = nn.Sequential(conv(i, 4 * o, 1, stride), nn.BatchNorm2d(4 * o))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, blocks: list[int], widths: list[int], classes: int, deep: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, widths[0], 3), nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for stage, (n, width) in enumerate(zip(blocks, widths[1:], strict=True)):
            layers = []
            for block in range(n):
                stride = 2 if stage and not block else 1
                layers.append((Bottleneck if deep else Basic)(inputs, width, stride))
                inputs = 4 * width if deep else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.n_stages = len(blocks)
        self.add_module("linear" if deep else "fc", nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.n_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        head = self.linear if hasattr(self, "linear") else self.fc
        return head(x.mean((2, 3)))  # type: ignore[no-any-return, operator]


class WideBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), conv(i, o, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), conv(o, o, 3)
        self.convShortcut: Any = conv(i, o, 1, stride) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return y + (x if self.convShortcut is None else self.convShortcut(a))  # type: ignore[no-any-return]


class WideStage(nn.Module):
    def __init__(self, n: int, i: int, o: int, stride: int) -> None:
        super().__init__()
        blocks = [WideBlock(i if b == 0 else o, o, stride if b == 0 else 1) for b in range(n)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    def __init__(self, depth: int, widen: int, classes: int) -> None:
        super().__init__()
        n, w = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = conv(3, w[0], 3)
        self.block1, self.block2 = WideStage(n, w[0], w[1], 1), WideStage(n, w[1], w[2], 2)
        self.block3, self.bn1 = WideStage(n, w[2], w[3], 2), nn.BatchNorm2d(w[3])
        self.fc = nn.Linear(w[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class VGG(nn.Module):
    def __init__(self, convolutions: list[int], classes: int) -> None:
        super().__init__()
        inputs = 3
        for stage, (n, o) in enumerate(zip(convolutions, (64, 128, 256, 512, 512), strict=True)):
            layers: list[nn.Module] = []
            for _ in range(n):
                layers += [conv(inputs, o, 3, bias=True), nn.BatchNorm2d(o), nn.ReLU()]
                inputs = o
            setattr(self, f"block{stage}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in range(5):
            x = F.relu(getattr(self, f"block{stage}")(x))
            x = F.max_pool2d(x, 2) if stage < 3 else x
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


class Inverted(nn.Module):
    def __init__(self, i: int, o: int, stride: int, t: int) -> None:
        super().__init__()
        m = i * t
        self.conv = nn.Sequential(
            conv(i, m, 1), nn.BatchNorm2d(m), nn.ReLU(),
            conv(m, m, 3, stride, m), nn.BatchNorm2d(m), nn.ReLU(),
            conv(m, o, 1), nn.BatchNorm2d(o),
        )  # fmt: skip
        self.adds = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU())
        inputs, groups = 16, []
        for t, c, n, s in (
            (1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2),
            (6, 160, 1, 1),
        ):  # fmt: skip
            blocks = []
            for b in range(n):
                blocks.append(Inverted(inputs, c, s if b == 0 else 1, t))
                inputs = c
            groups.append(nn.Sequential(*blocks))
        self.blocks = nn.ModuleList(groups)
        self.conv2 = nn.Sequential(conv(160, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for group in self.blocks:
            x = group(x)
        return self.classifier(self.conv2(x).mean((2, 3)))  # type: ignore[no-any-return]


class ShuffleUnit(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        m, self.stride, self.g = o // 4, stride, 1 if i == 24 else 3
        self.conv1, self.bn1 = conv(i, m, 1, groups=self.g), nn.BatchNorm2d(m)
        self.conv2, self.bn2 = conv(m, m, 3, stride, m), nn.BatchNorm2d(m)
        self.conv3, self.bn3 = conv(m, o, 1, groups=3), nn.BatchNorm2d(o)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffled(F.relu(self.bn1(self.conv1(x))), self.g)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        if self.stride == 1:
            return F.relu(y + x)
        return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))


class ShuffleNetV1(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        inputs = 24
        for stage, (o, n) in enumerate(((240, 4), (480, 8), (960, 4))):
            units = [ShuffleUnit(inputs, o - inputs, 2)]
            units += [ShuffleUnit(o, o, 1) for _ in range(n - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*units))
            inputs = o
        self.linear = nn.Linear(960, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(3):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


class SplitUnit(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        c //= 2
        self.conv1, self.bn1 = conv(c, c, 1), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = conv(c, c, 3, groups=c), nn.BatchNorm2d(c)
        self.conv3, self.bn3 = conv(c, c, 1), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        b = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(b)))))
        return shuffled(torch.cat([a, F.relu(self.bn3(self.conv3(b)))], 1), 2)


class DownUnit(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        m = o // 2
        self.conv1, self.bn1 = conv(i, i, 3, 2, i), nn.BatchNorm2d(i)
        self.conv2, self.bn2 = conv(i, m, 1), nn.BatchNorm2d(m)
        self.conv3, self.bn3 = conv(i, m, 1), nn.BatchNorm2d(m)
        self.conv4, self.bn4 = conv(m, m, 3, 2, m), nn.BatchNorm2d(m)
        self.conv5, self.bn5 = conv(m, m, 1), nn.BatchNorm2d(m)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        b = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return shuffled(torch.cat([a, F.relu(self.bn5(self.conv5(b)))], 1), 2)


class ShuffleNetV2(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 24, 1), nn.BatchNorm2d(24)
        inputs = 24
        for stage, (o, n) in enumerate(((116, 3), (232, 7), (464, 3))):
            units = [DownUnit(inputs, o), *(SplitUnit(o) for _ in range(n))]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*units))
            inputs = o
        self.conv2, self.bn2 = conv(464, 1024, 1), nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(3):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))  # type: ignore[no-any-return]


def published(network: str, classes: int = 7) -> nn.Module:
    """The published network of one of this project's names, in eval mode, norms not trivial."""
    narrow, wide = [16, 16, 32, 64], [32, 64, 128, 256]
    built: dict[str, Any] = {
        "resnet20": lambda: ResNet([3, 3, 3], narrow, classes, deep=False),
        "resnet8x4": lambda: ResNet([1, 1, 1], wide, classes, deep=False),
        "resnet50": lambda: ResNet([3, 4, 6, 3], [64, 64, 128, 256, 512], classes, deep=True),
        "wrn-16-2": lambda: WideResNet(16, 2, classes),
        "vgg8": lambda: VGG([1, 1, 1, 1, 1], classes),
        "vgg13": lambda: VGG([2, 2, 2, 2, 2], classes),
        "mobilenetv2": lambda: MobileNetV2(classes),
        "shufflenetv1": lambda: ShuffleNetV1(classes),
        "shufflenetv2": lambda: ShuffleNetV2(classes),
    }
    torch.manual_seed(0)
    net: nn.Module = built[network]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


NETWORKS = (
    "resnet20", "resnet8x4", "resnet50", "wrn-16-2", "vgg8", "vgg13", "mobilenetv2", "shufflenetv1",
    "shufflenetv2",
)  # fmt: skip
