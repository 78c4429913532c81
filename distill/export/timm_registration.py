"""Register this project's networks with timm.

    import timm
    import distill.export.timm_registration
    net = timm.create_model("local-dir:DIR", pretrained=True)

Outside the checkout, install it: pip install -e CHECKOUT.
The networks take images in [0, 1] and normalise them themselves. A timm transform for them must
therefore use mean 0 and std 1, which their config contains.
"""

from dataclasses import asdict
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

from distill.errors import UserError
from networks import by_name
from students.design import Design
from students.feature_map_sizes import IMAGE_CHANNELS
from students.resnet import ResNet
from teachers.wrn import WideResNet

__all__ = ["understudy_network", "understudy_resnet", "understudy_wrn"]

NOT_OURS = ("global_pool",)  # an argument that timm passes to every network; ignored here
# The arguments of a student besides the fields of its `Design`.
RATES = ("activation", "block_dropout", "head_dropout", "norm_momentum")


def resnet_arguments(design: Design, **rates: Any) -> dict[str, Any]:
    """Return the `model_args` of a config from which `understudy_resnet` builds a student.

    `rates`: activation, dropout rates and batch-norm momentum.
    """
    return {k: v for k, v in asdict(design).items() if k != "classes" and v is not None} | rates


def understudy_resnet(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build a student from keyword arguments: the fields of its `Design`, activation, dropout rates
    and batch-norm momentum.
    """
    return _build(_resnet, "understudy_resnet", pretrained, arguments)


def understudy_wrn(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build a wide residual network from `depth`, `widen` and `dropout`."""
    return _build(_wrn, "understudy_wrn", pretrained, arguments)


def understudy_network(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build a network of `networks/network_catalogue.py` from `network`, its name."""
    return _build(_network, "understudy_network", pretrained, arguments)


def _build(make: Any, name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    net: nn.Module = build_model_with_cfg(
        make, name, pretrained, kwargs_filter=NOT_OURS, **arguments
    )
    return net


def _resnet(num_classes: int, in_chans: int, **arguments: Any) -> ResNet:
    _check_channels(in_chans)
    rates = {name: arguments.pop(name) for name in RATES if name in arguments}
    plain: dict[str, Any] = {  # JSON has no tuples
        k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()
    }
    return ResNet(Design(classes=num_classes, **plain), **rates)


def _wrn(num_classes: int, in_chans: int, **arguments: Any) -> WideResNet:
    _check_channels(in_chans)
    return WideResNet(classes=num_classes, **arguments)


def _network(num_classes: int, in_chans: int, network: str) -> nn.Module:
    _check_channels(in_chans)
    return by_name.build(network, classes=num_classes)


def _check_channels(n: int) -> None:
    if n != IMAGE_CHANNELS:
        raise UserError(f"in_chans = {n}; the networks of this project take {IMAGE_CHANNELS}")


register_model(understudy_network)
register_model(understudy_resnet)
register_model(understudy_wrn)
