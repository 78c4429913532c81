"""Build teacher networks by name."""

import difflib
from typing import Protocol

from torch import nn

from distill.errors import UserError
from teachers.wrn import WideResNet


class Builder(Protocol):
    """Builds a network of one family, for instance `timm`.

    `name`: the part after the slash in `family/name`; empty without a slash.
    """

    def __call__(
        self, name: str, *, depth: int, widen: int, dropout: float, classes: int
    ) -> nn.Module: ...


def _wrn(name: str, *, depth: int, widen: int, dropout: float, classes: int) -> nn.Module:
    if name:
        raise UserError(f"wrn/{name} is not a network; type wrn, and set depth and widen")
    return WideResNet(depth, widen, dropout, classes)


def _timm(name: str, *, depth: int, widen: int, dropout: float, classes: int) -> nn.Module:
    from teachers.timm_from_scratch import timm_classifier  # timm takes seconds to import

    if dropout:
        raise UserError(f"dropout = {dropout} belongs to wrn; timm/{name} takes 0")
    return timm_classifier(name, classes)


NETWORKS: dict[str, Builder] = {"wrn": _wrn, "timm": _timm}


def build(
    network: str, *, depth: int = 28, widen: int = 10, dropout: float = 0.0, classes: int = 10
) -> nn.Module:
    """Build `wrn` or `timm/NAME` with random weights; `depth` and `widen` are for `wrn` only.

    The network maps images [B, 3, H, W] in [0, 1] to logits [B, classes]. Raises UserError for an
    unknown network, naming similar ones, and for arguments that are invalid for the network.
    """
    family, _, name = network.partition("/")
    if family not in NETWORKS:
        raise UserError(
            f'network = "{network}" is neither wrn nor timm/NAME; did you mean {_nearest(network)}?'
        )
    return NETWORKS[family](name, depth=depth, widen=widen, dropout=dropout, classes=classes)


def summary(network: str, depth: int = 28, widen: int = 10) -> str:
    """Return a network's short name, `WRN-28-10` or `timm/resnet18`."""
    return f"WRN-{depth}-{widen}" if network == "wrn" else network


def _nearest(network: str) -> str:
    from teachers.timm_from_scratch import names  # a slow import, needed for wrong names only

    known = ["wrn", *(f"timm/{name}" for name in names())]
    return ", ".join(difflib.get_close_matches(network, known) or ["wrn"])
