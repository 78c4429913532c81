"""Translate the names of weights in the CRD benchmark's code to this project's names.

The layouts are those of HobbitLong/RepDistiller, which later benchmarks copied
(megvii-research/mdistiller among them). The modules and their order are the same, so that weights
trained there compute the same logits here.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from networks.network_catalogue import FIXED, RESIDUAL, wide_resnet

PARTS = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
# MobileNetV2's groups of blocks, by their index there: our stage, and the first block in it.
GROUPS = ((0, 0), (0, 1), (1, 0), (2, 0), (2, 4), (3, 0), (3, 3))
# Positions in our blocks of the layers `conv1`, `bn1`, `conv2` … of the published blocks.
BASIC = {"conv1": 0, "bn1": 1, "conv2": 4, "bn2": 5}
BOTTLENECK = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
SHUFFLE = {"conv1": 0, "bn1": 1, "conv2": 4, "bn2": 5, "conv3": 7, "bn3": 8}
SPLIT = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 5, "bn3": 6}
SHORT = {"conv1": 0, "bn1": 1, "conv2": 2, "bn2": 3}
LONG = {"conv3": 0, "bn3": 1, "conv4": 3, "bn4": 4, "conv5": 5, "bn5": 6}
PRE_ACTIVATION = {
    "bn1": "norm1", "conv1": "conv1", "bn2": "norm2", "conv2": "conv2", "convShortcut": "skip",
}  # fmt: skip


def translate(network: str, name: str) -> str | None:
    """Return our name of a weight of a published network; None if there is no such layer.

    `network`: a name of `network_catalogue.py`; `name`: such as "layer1.0.bn2.running_mean".
    """
    for pattern, replacement in _rules(network):
        found = re.fullmatch(f"{pattern}\\.{PARTS}", name)
        if found:
            *groups, part = found.groups()
            ours = replacement(groups) if callable(replacement) else replacement
            return f"{ours}.{part}"
    return None


Rule = tuple[str, str | Callable[[list[str]], str]]


class Rewrite:
    """Insert the position of a block's layer into the name of our block."""

    def __init__(self, block: str, layers: Mapping[str, int | str]) -> None:
        self.block, self.layers = block, layers

    def __call__(self, groups: list[str]) -> str:
        stage, index, layer = groups
        return self.block.format(int(stage) - 1, index, self.layers[layer])


def _rules(network: str) -> Iterator[Rule]:
    """Yield pairs: the pattern of published modules, and our module or a function of the groups."""
    if wide_resnet(network) is not None:
        yield "conv1", "stem"
        yield "bn1", "norm"
        layers = "|".join(PRE_ACTIVATION)
        yield rf"block(\d+)\.layer\.(\d+)\.({layers})", Rewrite("stages.{}.{}.{}", PRE_ACTIVATION)
    elif network.startswith("vgg"):
        yield r"(block)(\d)\.(\d+)", _vgg
    elif network == "mobilenetv2":
        yield r"conv1\.(\d)", lambda groups: f"stem.{groups[0]}"
        yield r"conv2\.(\d)", lambda groups: f"last.{groups[0]}"
        yield r"blocks\.(\d)\.(\d)\.conv\.(\d)", _inverted_residual
    elif network in RESIDUAL or network in FIXED:
        yield "conv1", "stem.0"
        yield "bn1", "stem.1"
        yield from _stages(network)
    yield "(?:fc|linear|classifier|classifier\\.0)", "head"


def _stages(network: str) -> Iterator[Rule]:
    skip = Rewrite("stages.{}.{}.skip.{}", {"0": 0, "1": 1})
    yield r"layer(\d)\.(\d+)\.(?:downsample|shortcut)\.(0|1)", skip
    if network == "shufflenetv2":
        yield "conv2", "last.0"
        yield "bn2", "last.1"
        yield rf"layer(\d)\.(0)\.({'|'.join(SHORT)})", Rewrite("stages.{}.{}.short.{}", SHORT)
        yield rf"layer(\d)\.(0)\.({'|'.join(LONG)})", Rewrite("stages.{}.{}.long.{}", LONG)
        split = Rewrite("stages.{}.{}.branch.{}", SPLIT)
        yield rf"layer(\d)\.(\d+)\.({'|'.join(SPLIT)})", split
        return
    layers = SHUFFLE if network == "shufflenetv1" else BOTTLENECK if network in FIXED else BASIC
    block = Rewrite("stages.{}.{}.residual.{}", layers)
    yield rf"layer(\d)\.(\d+)\.({'|'.join(layers)})", block


def _vgg(groups: list[str]) -> str:
    """Our stages 1 to 3 begin with the pooling layer, which the published ones have outside."""
    stage, layer = int(groups[1]), int(groups[2])
    return f"stem.{layer}" if stage == 0 else f"stages.{stage - 1}.{layer + (1 <= stage <= 3)}"


def _inverted_residual(groups: list[str]) -> str:
    group, block, layer = map(int, groups)
    stage, first = GROUPS[group]
    return f"stages.{stage}.{first + block}.residual.{layer}"
