"""Extract named feature maps of a network beside its logits."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.errors import UserError


class ModelOutput(NamedTuple):
    """What a network says of images."""

    logits: Tensor  # [B, C]
    taps: dict[str, Tensor]  # maps [B, C, H, W]; `features` [B, D]


class FeatureExtractor(nn.Module):
    """Images to an `Answer`, by hooks on the modules whose outputs were asked for.

    The hooks are silent but for this module's own forward: who calls the network itself, to
    measure or to average it, keeps nothing alive. Raises UserError for a tap that is not there,
    naming those that are.
    """

    def __init__(self, net: nn.Module, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.net = net
        self.heard: dict[str, Tensor] | None = None
        points = tap_points(net)
        missing = [name for name in taps if name not in points]
        if missing:
            raise UserError(
                f"{type(net).__name__} has no map {', '.join(missing)}; "
                f"it has {', '.join(points) or 'none to tap'}"
            )
        for name in dict.fromkeys(taps):
            points[name].register_forward_hook(partial(self._capture, name))

    def _capture(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.heard is not None:
            self.heard[name] = output

    def forward(self, images: Tensor) -> ModelOutput:
        self.heard = {}
        logits = self.net(images)
        heard, self.heard = self.heard, None
        return ModelOutput(logits, heard)


def tap_points(net: nn.Module) -> Mapping[str, nn.Module]:
    """The maps of a network by name; none of one that names none."""
    points: Mapping[str, nn.Module] = getattr(net, "tap_points", {})
    return points


@torch.no_grad()
def tap_shapes(extractor: FeatureExtractor, image_size: int) -> dict[str, tuple[int, ...]]:
    """Each tap's shape without the batch, by one black image; the network stays as it is."""
    net, device = extractor.net, next(extractor.net.parameters()).device
    was_training = net.training
    net.eval()
    answer: ModelOutput = extractor(torch.zeros(1, 3, image_size, image_size, device=device))
    net.train(was_training)
    return {name: tuple(tap.shape[1:]) for name, tap in answer.taps.items()}
