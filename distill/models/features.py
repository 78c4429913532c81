"""Compute named feature maps ("taps") of a network together with its logits."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.errors import UserError

MOST_LISTED = 40  # names of taps in a message


class ModelOutput(NamedTuple):
    """A network's logits and feature maps for a batch of images."""

    logits: Tensor  # [B, C]
    taps: dict[str, Tensor]  # maps [B, C, H, W]; `features` [B, D]


class FeatureExtractor(nn.Module):
    """Wraps a network to return its logits and the feature maps `taps` as a `ModelOutput`.

    The maps are captured by hooks on the network's modules, only during this wrapper's forward
    pass; a call of the wrapped network itself captures nothing. Raises UserError, naming the taps
    that exist, if a requested tap does not exist.
    """

    def __init__(self, net: nn.Module, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.net = net
        self.captured: dict[str, Tensor] | None = None
        self.copies = bool(getattr(net, "copies_taps", False))
        points = tap_points(net)
        missing = [name for name in taps if name not in points]
        if missing:
            raise UserError(
                f"{type(net).__name__} has no map {', '.join(missing)}; "
                f"it has {listed(points) or 'none to tap'}"
            )
        for name in dict.fromkeys(taps):
            points[name].register_forward_hook(partial(self._capture, name))

    def _capture(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.captured is None:
            return
        if not isinstance(output, Tensor):
            raise UserError(f"the output of {name} is {type(output).__name__}, not a tensor")
        self.captured[name] = output.clone() if self.copies else output

    def forward(self, images: Tensor) -> ModelOutput:
        self.captured = {}
        logits = self.net(images)
        captured, self.captured = self.captured, None
        return ModelOutput(logits, captured)


def listed(points: Iterable[str]) -> str:
    """Return the names of taps as a list in a message, at most MOST_LISTED of them."""
    names = list(points)
    more = [f"{len(names) - MOST_LISTED} more"] if len(names) > MOST_LISTED else []
    return ", ".join(names[:MOST_LISTED] + more)


def tap_points(net: nn.Module) -> Mapping[str, nn.Module]:
    """Return the modules whose outputs are available as taps, by tap name.

    Empty if the network has none.
    """
    points: Mapping[str, nn.Module] = getattr(net, "tap_points", {})
    return points


@torch.no_grad()
def tap_shapes(extractor: FeatureExtractor, image_size: int) -> dict[str, tuple[int, ...]]:
    """Return each tap's shape for one image, without the batch dimension.

    Costs a forward pass of a black image; the network's mode is restored.
    """
    net, device = extractor.net, next(extractor.net.parameters()).device
    was_training = net.training
    net.eval()
    output: ModelOutput = extractor(torch.zeros(1, 3, image_size, image_size, device=device))
    net.train(was_training)
    return {name: tuple(tap.shape[1:]) for name, tap in output.taps.items()}
