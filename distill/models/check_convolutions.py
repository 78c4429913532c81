"""Compare the gradients of convolutions on this machine with float64.

Kernels of some libraries compute wrong gradients for some shapes and memory formats
(`strided_pointwise.py` avoids such a case), and a training on them only learns worse.
"""

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.models.convolutions_of_small_maps import use_matrix_products
from distill.models.strided_pointwise import subsample_first

TOLERANCE = 1e-4  # of the largest gradient: some hundred float32 roundings
BATCH = 8
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# Inputs, outputs, kernel, stride and map size of convolutions like those of the shipped networks:
# the stem, blocks that keep and that halve the maps, and skips with few and with more channels.
SHAPES = (
    (3, 16, 3, 1, 32), (16, 32, 3, 2, 16), (64, 64, 3, 1, 8), (4, 8, 1, 2, 16), (32, 64, 1, 2, 8),
)  # fmt: skip


@dataclass(frozen=True)
class WrongGradient:
    """A convolution whose gradients differ from float64.

    `error`: the largest difference, as a fraction of the largest gradient; inf if not finite.
    """

    convolution: str
    layout: str
    error: float


def wrong_gradients(device: torch.device) -> list[WrongGradient]:
    """Return the convolutions of SHAPES, in either memory format, that are wrong on `device`.

    They are prepared as `to_device` prepares those of a network. Takes less than a second.
    """
    found = []
    for inputs, outputs, kernel, stride, size in SHAPES:
        for layout, memory_format in LAYOUTS.items():
            plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            if device.type == "cpu":
                subsample_first(plain)
                use_matrix_products(plain)
            convolution: nn.Conv2d = cast("Any", plain).to(device, memory_format=memory_format)
            maps = torch.randn(BATCH, inputs, size, size, device=device)
            error = gradient_error(convolution, maps.contiguous(memory_format=memory_format))
            if not error <= TOLERANCE:
                found.append(WrongGradient(repr(plain), layout, error))
    return found


def gradient_error(convolution: nn.Conv2d, inputs: Tensor) -> float:
    """Return the largest error of a convolution's gradients, as a fraction of the largest gradient.

    The gradients of weights and inputs are compared with those of the same convolution in float64
    and contiguous memory, for a random gradient of the output. `inputs`: maps [B, C, H, W], whose
    memory format is that of the comparison. Gradients that are not finite have the error inf.
    """
    convolution.requires_grad_()
    exact: nn.Conv2d = cast("Any", copy.deepcopy(convolution)).to(
        torch.float64, memory_format=torch.contiguous_format
    )
    with torch.no_grad():
        upstream = torch.randn_like(convolution(inputs))
    computed = _gradients(convolution, inputs, upstream)
    expected = _gradients(exact, inputs.detach().double().contiguous(), upstream.contiguous())
    pairs = zip(computed, expected, strict=True)
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    return max(error if error == error else float("inf") for error in errors)


def _gradients(convolution: nn.Conv2d, maps: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the weights and of the input, for a gradient of the output."""
    maps = maps.detach().requires_grad_()
    outputs = convolution(maps)
    return torch.autograd.grad(outputs, (convolution.weight, maps), upstream.to(maps.dtype))
