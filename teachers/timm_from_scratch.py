"""Build any timm classifier that takes small images, with random initial weights.

Only this file imports timm's models, since the import takes seconds.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from distill.errors import UserError
from students.normalize_images import Normalize


class TimmClassifier(nn.Module):
    """A timm network that normalises its input: [B, 3, H, W] in [0, 1] to logits [B, classes]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalize(images))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are available as taps, by tap name.

        The names are those in timm's `feature_info`, and `features` for the pooled last map.
        """
        info: Any = getattr(self.net, "feature_info", ())
        modules = dict.fromkeys(stage["module"] for stage in info if isinstance(stage, dict))
        points = {name: self.net.get_submodule(name) for name in modules if name}
        pool = getattr(self.net, "global_pool", None)
        return points | ({"features": pool} if isinstance(pool, nn.Module) else {})


def names() -> Sequence[str]:
    """Return the names of timm's architectures, without the tags of pretrained weights."""
    return timm.list_models()


def timm_classifier(name: str, classes: int, image_size: int = 32) -> TimmClassifier:
    """Build the architecture `name` with random weights and check it on two images.

    Raises UserError if timm does not know the name, if it has a tag of pretrained weights, if the
    network does not take images of `image_size` x `image_size` pixels, or if it is not a
    classifier.
    """
    _check_name(name)
    try:
        net = _build(name, classes, image_size)
        shape = _logits_shape(net, image_size)
    except Exception as error:  # timm's networks raise many types of errors for a size
        raise UserError(
            f"timm/{name} does not take {image_size}x{image_size} images: "
            f"{type(error).__name__}: {error}; choose another network, timm/resnet18 takes them"
        ) from error
    if shape != (2, classes):
        raise UserError(
            f"timm/{name} is not a classifier: two images gave {list(shape)} instead of "
            f"[2, {classes}]; choose another network, timm/resnet18 is one"
        )
    return TimmClassifier(net)


def _build(name: str, classes: int, image_size: int) -> nn.Module:
    """Build a timm network; pass `img_size` if its constructor accepts that argument."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=classes, img_size=image_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=False, num_classes=classes)


def _logits_shape(net: nn.Module, image_size: int) -> torch.Size:
    """Return the shape of the logits of two black images.

    The images are computed in eval mode, which does not change batch-norm statistics.
    """
    with torch.no_grad():
        logits: Tensor = net.eval()(torch.zeros(2, 3, image_size, image_size))
    net.train()
    return logits.shape


def _check_name(name: str) -> None:
    all_names = names()
    if name in all_names:
        return
    architecture, _, tag = name.partition(".")
    if tag and architecture in all_names:
        raise UserError(
            f'timm/{name} names the pretrained weights "{tag}", and teachers are trained from '
            f"scratch; type timm/{architecture}"
        )
    nearest = difflib.get_close_matches(name, all_names) or ["resnet18"]
    raise UserError(
        f"timm/{name} is not one of timm's {len(all_names)} networks; "
        f"try {', '.join(f'timm/{other}' for other in nearest)}"
    )
