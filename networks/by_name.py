"""Build networks by name, in either role."""

from collections.abc import Callable
from functools import partial

from torch import nn

from distill.errors import UserError
from networks.bottleneck_resnet import BottleneckResNet
from networks.mobilenet_v2 import MobileNetV2
from networks.network_catalogue import FIXED, RESIDUAL, fault_of_name, similar, wide_resnet
from networks.shufflenet_v1 import ShuffleNetV1
from networks.shufflenet_v2 import ShuffleNetV2
from networks.vgg import VGG
from students.design import Design
from students.resnet import ResNet
from teachers.wrn import WideResNet

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    **{f"vgg{depth}": partial(VGG, depth) for depth in (8, 11, 13, 16, 19)},
    **{f"resnet{depth}": partial(BottleneckResNet, depth) for depth in (50, 101, 152)},
    "mobilenetv2": partial(MobileNetV2, 0.5),
    "shufflenetv1": ShuffleNetV1,
    "shufflenetv2": ShuffleNetV2,
}


def build(
    network: str,
    *,
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0.0,
    classes: int = 10,
    image_size: int = 32,
) -> nn.Module:
    """Build a network with random weights: a name of `network_catalogue.py`, `wrn` or `timm/NAME`.

    It maps images [B, 3, H, W] in [0, 1] to logits [B, classes]. `depth` and `widen` apply to
    `wrn`, `dropout` to `wrn` and `wrn-DEPTH-WIDEN`. `image_size`: height and width of the images in
    pixels, which some networks of timm need. A named residual network begins with scales of
    1 in all batch norms, as published. Raises UserError for an unknown network, with similar names,
    and for arguments that the network does not accept.
    """
    if network == "wrn":
        return WideResNet(depth, widen, dropout, classes)
    if fault := fault_of_name(network):
        raise UserError(f'network = "{network}" {fault}')
    design = wide_resnet(network)
    if design is not None:
        return WideResNet(design.depth, design.widen, dropout, classes)
    if dropout:
        raise UserError(f"dropout = {dropout} belongs to wrn; {network} takes 0")
    if network in RESIDUAL:
        return ResNet(
            Design.of(**RESIDUAL[network], classes=classes, image_size=image_size), zero_gamma=False
        )
    if network in FIXED:
        return BUILDERS[network](classes=classes)
    return _build_timm(network, classes, image_size)


def _build_timm(network: str, classes: int, image_size: int) -> nn.Module:
    """Build the network of timm that is called `timm/NAME`.

    Raises UserError for any other name, with similar names.
    """
    family, _, name = network.partition("/")
    if family == "timm" and name:
        from teachers.timm_from_scratch import timm_classifier  # timm takes seconds to import

        return timm_classifier(name, classes, image_size)
    raise UserError(f'network = "{network}" is unknown; did you mean {_nearest(network)}?')


def _nearest(network: str) -> str:
    from teachers.timm_from_scratch import names  # a slow import, needed for wrong names only

    if network in names():
        return f"timm/{network}"
    return ", ".join(similar(network, ["wrn", *(f"timm/{name}" for name in names())]) or ["wrn"])
