"""Compute 3x3 convolutions of small maps as matrix products on a CPU.

oneDNN's convolution kernels process a row of pixels at once, so maps of 4x4 pixels or fewer leave
most of a vector register or an AMX tile empty. If each pixel's 3x3 neighbourhood is gathered first
(im2col: Chellapilla et al., "High Performance Convolutional Neural Networks for Document
Processing", 2006), the convolution of a batch is one large matrix product. docs/performance.md has
the measured times.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

MIN_CHANNELS = 256  # of input and output; with fewer channels, gathering costs more than it saves
MAX_PIXELS = {torch.bfloat16: 16, torch.float32: 9}  # pixels of a map, by dtype of the computation


def use_matrix_products(net: nn.Module) -> None:
    """Replace a network's wide 3x3 convolutions by SmallMapConv2d, in place.

    Convolutions with at least 256 channels are replaced. Outputs and gradients are the same up to
    rounding; parameters and their names do not change. Calling this function again has no effect.
    """
    for module in net.modules():
        if type(module) is nn.Conv2d and _is_eligible(module):
            module.__class__ = SmallMapConv2d


def _is_eligible(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (3, 3)
        and convolution.padding in ((1, 1), "same")
        and convolution.padding_mode == "zeros"
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and min(convolution.in_channels, convolution.out_channels) >= MIN_CHANNELS
    )


class SmallMapConv2d(nn.Conv2d):
    """A 3x3 convolution (stride 1, zero padding 1) computed as a matrix product on small maps."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = input.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        height, width = input.shape[-2:]
        if input.device.type != "cpu" or height * width > MAX_PIXELS.get(dtype, 0):
            convolved: Tensor = super()._conv_forward(input, weight, bias)
            return convolved
        maps: Tensor = _Convolution.apply(input.to(dtype), weight.to(dtype))
        return maps if bias is None else maps + bias.to(dtype)[:, None, None]


class _Convolution(torch.autograd.Function):
    """Convolve maps [B, C, H, W] with a kernel [O, C, 3, 3] to maps [B, O, H, W]."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(maps, kernel)
        return _convolve(maps, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, kernel = ctx.saved_tensors
        maps_gradient = kernel_gradient = None
        if ctx.needs_input_grad[0]:  # the transposed convolution
            maps_gradient = _convolve(gradient, kernel.flip(2, 3).transpose(0, 1))
        if ctx.needs_input_grad[1]:
            product = _pixels_as_rows(gradient).T @ _patches(maps)
            kernel_gradient = product.view(-1, 3, 3, maps.shape[1]).permute(0, 3, 1, 2)
        return maps_gradient, kernel_gradient


def _convolve(maps: Tensor, kernel: Tensor) -> Tensor:
    batch, _, height, width = maps.shape
    matrix = kernel.permute(2, 3, 1, 0).reshape(-1, kernel.shape[0])  # [9 C, O]
    product = _patches(maps) @ matrix
    return product.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _pixels_as_rows(maps: Tensor) -> Tensor:
    """Reshape maps [B, C, H, W] to one row per pixel, [B H W, C]."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _patches(maps: Tensor) -> Tensor:
    """Gather the 3x3 pixels around each pixel, zero-padded: [B, C, H, W] to [B H W, 9 C]."""
    batch, channels, height, width = maps.shape
    padded = pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, column, channel = padded.stride()
    windows = padded.as_strided(
        (batch, height, width, 3, 3, channels), (image, row, column, row, column, channel)
    )
    return windows.reshape(batch * height * width, 9 * channels)
