"""Translate the names of weights in the CRD benchmark's code to this project's names.

The layouts are those of HobbitLong/RepDistiller, which later benchmarks copied
(megvii-research/mdistiller among them). The modules and their order are the same, so that weights
trained there compute the same logits here.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product

from networks.network_catalogue import FIXED, RESIDUAL, wide_resnet

MOST_BLOCKS = 36  # in a stage of a published network: those of resnet152
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


def original(network: str, name: str) -> str:
    """Return the published name of our weight; the name itself if there is none."""
    module, _, part = name.rpartition(".")
    return f"{_originals(network)[module]}.{part}" if module in _originals(network) else name


@cache
def _originals(network: str) -> dict[str, str]:
    """Return the published module by our module, the first of those that have the same layer."""
    found: dict[str, str] = {}
    for module in _published_modules():
        ours = translate(network, f"{module}.weight")
        if ours is not None:
            found.setdefault(ours.removesuffix(".weight"), module)
    return found


def _published_modules() -> Iterator[str]:
    """Yield the modules of all published networks, with more blocks and layers than they have."""
    for stem in ("conv1", "bn1", "conv2", "bn2", "fc"):
        yield from (stem, *(f"{stem}.{i}" for i in range(3)))
    layers = [f"{kind}{i}" for i in range(1, 7) for kind in ("conv", "bn")]
    for stage, block in product(range(5), range(MOST_BLOCKS)):
        yield f"block{stage}.{block}"
        yield from (f"block{stage}.layer.{block}.{layer}" for layer in PRE_ACTIVATION)
        yield from (f"layer{stage}.{block}.{layer}" for layer in layers)
        yield from (f"layer{stage}.{block}.downsample.{i}" for i in range(2))
    for group, block, layer in product(range(len(GROUPS)), range(4), range(9)):
        yield f"blocks.{group}.{block}.conv.{layer}"


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
