"""The networks that have a name: their parameters, multiply-accumulates and taps, without torch.

Names, shapes and numbers of parameters are those of the CRD benchmark (Tian et al., ICLR 2020,
arXiv 1910.10699; HobbitLong/RepDistiller).
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

from teachers.wrn_cost import WrnDesign

RESNET_DEPTHS = (8, 14, 20, 32, 44, 56, 110)  # 6n + 2: three stages of n blocks
WIDE_RESNET = re.compile("wrn-([1-9][0-9]{0,3})-([0-9]{1,3})")
# A file or a dotted module, a colon, and a Python name.
OWN_CODE = re.compile(r"([^\x00-\x1f]+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
# The product of the strides of each network in FIXED divides it.
LARGEST_STRIDE = 16
WIDE_EXAMPLES = ("16-1", "16-2", "40-1", "40-2", "28-10")
EXAMPLES = "resnet20, resnet8x4, wrn-16-2, vgg8, mobilenetv2"


class FixedNetwork(NamedTuple):
    """A network without keys: all but its linear layer is fixed."""

    summary: str  # its name
    stages: int
    features: int  # inputs of the linear layer
    body_parameters: int  # without the linear layer
    body_macs: int  # for images of 32x32 pixels
    classes: int = 10
    image_size: int = 32  # height and width in pixels, a multiple of LARGEST_STRIDE

    @property
    def parameters(self) -> int:
        """The number of parameters, including the linear layer and its bias."""
        return self.body_parameters + (self.features + 1) * self.classes

    @property
    def trainable(self) -> int:
        """The number of trained parameters: all of them."""
        return self.parameters

    @property
    def macs(self) -> int:
        """The multiply-accumulates for one image: all convolutions and the linear layer.

        Those of a convolution are proportional to the pixels of its output.
        """
        return self.body_macs * self.image_size**2 // 32**2 + self.features * self.classes

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the maps that can be read."""
        return ("stem", *(f"stages.{i}" for i in range(self.stages)), "maps", "features")


FIXED = {
    network.summary: network
    for network in (
        FixedNetwork("vgg8", 4, 512, 3_913_728, 96_141_312),
        FixedNetwork("vgg11", 4, 512, 9_225_984, 209_387_520),
        FixedNetwork("vgg13", 4, 512, 9_410_880, 284_884_992),
        FixedNetwork("vgg16", 4, 512, 14_723_136, 398_131_200),
        FixedNetwork("vgg19", 4, 512, 20_035_392, 511_377_408),
        FixedNetwork("mobilenetv2", 4, 1280, 684_736, 6_395_648),
        FixedNetwork("shufflenetv1", 3, 960, 853_158, 38_595_456),
        FixedNetwork("shufflenetv2", 3, 1024, 1_253_028, 44_402_048),
        FixedNetwork("resnet50", 4, 2048, 23_500_352, 1_297_809_408),
        FixedNetwork("resnet101", 4, 2048, 42_492_480, 2_509_963_264),
        FixedNetwork("resnet152", 4, 2048, 58_136_128, 3_722_117_120),
    )
}
RESIDUAL: dict[str, dict[str, Any]] = {  # the arguments of `Design.of`
    f"resnet{depth}": {"stages": 3, "blocks": (depth - 2) // 6, "width": 16}
    for depth in RESNET_DEPTHS
} | {
    f"resnet{depth}x4": {
        "stages": 3,
        "blocks": (depth - 2) // 6,
        "channels": (64, 128, 256),
        "stem_width": 32,
    }
    for depth in RESNET_DEPTHS
}


def split_own(network: str) -> tuple[str, str]:
    """Split the name of a network of the user's own code: `nets.py:small` into file and callable.

    The first part is a file that ends in .py or a module; both are empty for another network.
    """
    found = OWN_CODE.fullmatch(network)
    return (found[1], found[2]) if found else ("", "")


def is_own(network: str) -> bool:
    """Whether a network is of the user's own code: `FILE.py:NAME` or `package.module:NAME`."""
    return OWN_CODE.fullmatch(network) is not None


def wide_resnet(network: str, classes: int = 10, image_size: int = 32) -> WrnDesign | None:
    """Return the design that `wrn-DEPTH-WIDEN` names; None for another name.

    The depth may be invalid, see `is_valid_depth`.
    """
    found = WIDE_RESNET.fullmatch(network)
    return WrnDesign(int(found[1]), int(found[2]), classes, image_size) if found else None


def is_valid_depth(depth: int) -> bool:
    """Whether a Wide ResNet can have this depth: 6n + 4, at least 10."""
    return depth >= 10 and depth % 6 == 4


def is_named(network: str) -> bool:
    """Whether a name is one of this module's, which no key describes further."""
    return network in FIXED or network in RESIDUAL or wide_resnet(network) is not None


def fault_of_name(network: str) -> str:
    """Return what is wrong with a name of this module's form; empty if nothing is.

    A name without a fault may still be unknown: see `is_named`.
    """
    design = wide_resnet(network)
    if design is None:
        return ""
    if not is_valid_depth(design.depth):
        return f"has depth {design.depth}, which wrn does not have; allowed: 10, 16, 22, 28 …"
    return "" if design.widen else "has width 0; allowed: 1 or more"


def similar(network: str, others: Iterable[str] = ()) -> list[str]:
    """Return up to three names, of this module and of `others`, that are similar to an unknown
    one, the most similar first.
    """
    known = [*others, *FIXED, *RESIDUAL, *(f"wrn-{size}" for size in WIDE_EXAMPLES)]
    plain = network.lower().replace("_", "-")
    found = get_close_matches(plain, known)
    return found or get_close_matches(plain.replace("-", ""), known)
