"""Find out which named networks the weights of another program belong to."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from distill.errors import UserError
from networks import by_name, crd_weight_names
from networks.network_catalogue import FIXED, RESIDUAL, wide_resnet
from students.design import Design

HEAD = "head.weight"  # of the linear classifier of every named network
COUNTER = "num_batches_tracked"
# Sizes of the Wide ResNets that are tried: those of papers on distillation and of Zagoruyko and
# Komodakis (arXiv 1605.07146).
WIDE = [f"wrn-{depth}-{widen}" for depth in (10, 16, 22, 28, 34, 40) for widen in (1, 2, 4, 8, 10)]


def networks_of(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of classes of each named network that has these weights.

    Compares names and shapes; builds the networks with as many parameters, without allocating
    their weights. Networks of timm and of the user's own code are not tried.
    """
    for network in (*RESIDUAL, *FIXED, *WIDE):
        renamed = {
            crd_weight_names.translate(network, name) or name: tensor
            for name, tensor in weights.items()
        }
        shapes = _shapes(renamed)
        head = shapes.get(HEAD, ())
        # Building a network takes a fraction of a second, so its parameters are counted before.
        if (
            len(head) == 2
            and _n_parameters(network, head[0]) == _n_trained(renamed)
            and shapes == _shapes_of(network, head[0])
        ):
            yield network, head[0]


def n_classes(weights: Mapping[str, Tensor], network: str) -> int | None:
    """Return the number of outputs of the linear classifier in a named network's weights, or None.

    `weights` have this project's names or those of the CRD benchmark.
    """
    for name, tensor in weights.items():
        if HEAD in (name, crd_weight_names.translate(network, name)) and tensor.ndim == 2:
            return len(tensor)
    return None


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor without the counters of batch norms, which may be absent."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in weights.items()
        if not name.endswith(COUNTER) and not name.startswith("normalize.")
    }


def _n_trained(weights: Mapping[str, Tensor]) -> int:
    """Return the number of parameters, without the statistics of batch norms."""
    names = (name for name in _shapes(weights) if ".running_" not in name)
    return sum(weights[name].numel() for name in names)


def _n_parameters(network: str, classes: int) -> int:
    """Return the number of parameters of a named network in closed form."""
    if network in FIXED:
        return FIXED[network]._replace(classes=classes).parameters
    if (wide := wide_resnet(network, classes)) is not None:
        return wide.parameters
    return Design.of(**RESIDUAL[network], classes=classes).parameters


def _shapes_of(network: str, classes: int) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            return _shapes(by_name.build(network, classes=classes).state_dict())
    except UserError:
        return {}
