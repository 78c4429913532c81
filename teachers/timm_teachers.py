"""Build any timm classifier that takes small images, with random initial weights.

The one file that imports timm's models: that import alone takes seconds.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from distill.errors import UserError
from students.normalize import Normalize


class TimmClassifier(nn.Module):
    """A timm network, normalising inside: images [B, 3, H, W] in [0, 1] to logits [B, classes]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalize(images))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Tap name to the module whose output it is: timm's own names, and `features`."""
        info: Any = getattr(self.net, "feature_info", ())
        modules = dict.fromkeys(each["module"] for each in info if isinstance(each, dict))
        points = {name: self.net.get_submodule(name) for name in modules if name}
        pool = getattr(self.net, "global_pool", None)
        return points | ({"features": pool} if isinstance(pool, nn.Module) else {})


def names() -> Sequence[str]:
    """Every architecture that timm knows, without the tags of pretrained weights."""
    return timm.list_models()


def timm_classifier(name: str, classes: int, image_size: int = 32) -> TimmClassifier:
    """The architecture `name` with random weights, tried on two images of this size (in pixels).

    Raises UserError for a name that timm does not know, one that carries pretrained weights, and a
    network that cannot be built for, or fails on, images of this size.
    """
    _check_name(name)
    try:
        net = _build(name, classes, image_size)
        shape = _logits_shape(net, image_size)
    except Exception as error:  # timm's networks refuse a size with whatever they trip over
        raise UserError(
            f"timm/{name} does not take {image_size}x{image_size} images: "
            f"{type(error).__name__}: {error}; choose another network, timm/resnet18 takes them"
        ) from error
    if shape != (2, classes):
        raise UserError(
            f"timm/{name} is no classifier: two images gave {list(shape)} instead of "
            f"[2, {classes}]; choose another network, timm/resnet18 is one"
        )
    return TimmClassifier(net)


def _build(name: str, classes: int, image_size: int) -> nn.Module:
    """With `img_size` first: only the constructor behind the name knows whether it takes it."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=classes, img_size=image_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=False, num_classes=classes)


def _logits_shape(net: nn.Module, image_size: int) -> torch.Size:
    """What two black images give. In eval mode: the batch norms' statistics stay as they are."""
    with torch.no_grad():
        logits: Tensor = net.eval()(torch.zeros(2, 3, image_size, image_size))
    net.train()
    return logits.shape


def _check_name(name: str) -> None:
    known = names()
    if name in known:
        return
    architecture, _, tag = name.partition(".")
    if tag and architecture in known:
        raise UserError(
            f'timm/{name} names the pretrained weights "{tag}", and teachers are trained from '
            f"scratch; type timm/{architecture}"
        )
    nearest = difflib.get_close_matches(name, known) or ["resnet18"]
    raise UserError(
        f"timm/{name} is none of timm's {len(known)} networks; "
        f"try {', '.join(f'timm/{other}' for other in nearest)}"
    )
