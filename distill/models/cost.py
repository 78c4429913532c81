"""Count parameters and multiply-accumulates; time one prediction."""

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.data.image_set import CHANNELS, SIDE

BATCHES = (1, 128)  # batch sizes whose latency is measured
WARM_UP = 10  # calls before the measurement, in which kernels are chosen and memory is allocated
LEAST, MOST = 10, 200  # limits of the number of measured calls
ENOUGH_S = 2.0  # after this time no more calls are measured


def count_parameters(net: nn.Module) -> int:
    """Count all parameters of a network, including those that are not trained."""
    return sum(p.numel() for p in net.parameters())


def count_macs(net: nn.Module, size: int = SIDE) -> int:
    """Count the multiply-accumulates of the forward pass of one image of `size` x `size` pixels.

    Only convolutions and matrix products are counted. In these networks these are the convolutions,
    the linear layers and the attention of some timm networks.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(_grey_images(net, 1, size))
    flops: int = counter.get_total_flops()
    return flops // 2  # torch counts a multiply-accumulate as two operations


@torch.inference_mode()
def measure_latency(net: nn.Module, size: int = SIDE) -> dict[str, Any]:
    """Measure the milliseconds from images on the device to logits, at batches of 1 and 128.

    The images have `size` x `size` pixels. Each value is the median over sequential, synchronised
    calls: a latency, not a throughput.
    """
    net.eval()
    device = next(net.parameters()).device
    on_gpu = device.type == "cuda"
    return {
        **{f"batch_{n}": 1000 * _median_s(net, _grey_images(net, n, size)) for n in BATCHES},
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "threads": torch.get_num_threads(),
        "precision": str(next(net.parameters()).dtype).removeprefix("torch."),
    }


def _median_s(net: nn.Module, images: Tensor) -> float:
    for _ in range(WARM_UP):
        _time_call(net, images)
    seconds: list[float] = []
    while len(seconds) < LEAST or (sum(seconds) < ENOUGH_S and len(seconds) < MOST):
        seconds.append(_time_call(net, images))
    return median(seconds)


def _time_call(net: nn.Module, images: Tensor) -> float:
    _synchronize(images)
    began_at = time.perf_counter()
    net(images)
    _synchronize(images)
    return time.perf_counter() - began_at


def _synchronize(images: Tensor) -> None:
    """Wait until the device of `images` has finished its work; a CPU needs no waiting."""
    if images.device.type != "cpu":
        torch.accelerator.synchronize(images.device)


def _grey_images(net: nn.Module, n: int, size: int) -> Tensor:
    """Return `n` grey images on the network's device; the cost does not depend on the pixels."""
    images = torch.full((n, CHANNELS, size, size), 0.5, device=next(net.parameters()).device)
    return images.to(memory_format=torch.channels_last)
