"""What this machine can do at best: a matrix product, a convolution, a copy.

    python -m benchmarks.ceilings [--quick] [--json]

Each is repeated for some seconds and its fastest time counts. Operations are counted as two a
multiply-add; a copy as bytes read plus bytes written. float32 on a CPU, bfloat16 on a GPU, where
everything is random: zeros run faster there.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

SECONDS = 2.0  # of each


def fastest(work: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Seconds of the fastest of many calls, each from an idle device to an idle device."""
    best, end = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        while True:
            began_at = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            best = min(best, now - began_at)
            if now > end:
                return best


def convolution(device: torch.device, seconds: float = SECONDS) -> float:
    """Operations a second of a 3x3 convolution of 256 channels, channels last, forward."""
    n, channels, side = (1024 if device.type == "cuda" else 64), 256, 16
    layer: Any = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layer = layer.to(device, _dtype(device), memory_format=torch.channels_last)
    maps = torch.randn(n, channels, side, side, device=device, dtype=_dtype(device))
    maps = maps.to(memory_format=torch.channels_last)
    operations = 2 * 9 * channels**2 * side**2 * n
    return operations / fastest(lambda: layer(maps), device, seconds)


def product(device: torch.device, seconds: float = SECONDS) -> float:
    """Operations a second of a product of two square matrices."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=_dtype(device)) for _ in range(2))
    return 2 * n**3 / fastest(lambda: a @ b, device, seconds)


def copy(device: torch.device, seconds: float = SECONDS) -> float:
    """Bytes a second, read plus written, of a copy that no cache holds."""
    n_bytes = 2**32 if device.type == "cuda" else 2**28
    source = torch.randint(0, 255, (n_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / fastest(lambda: target.copy_(source), device, seconds)


def report(seconds: float) -> dict[str, Any]:
    """All three, ready for JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "type": str(_dtype(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "product_flops": product(device, seconds),
        "convolution_flops": convolution(device, seconds),
        "copy_bytes": copy(device, seconds),
    }


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ceilings", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    content = report(SECONDS / 10 if given.quick else SECONDS)
    if given.json:
        print(json.dumps(content))
    else:
        print("{device}, {type}, {threads} thread(s)".format_map(content))
        print("matrix product  {:10,.0f} GFLOP/s".format(content["product_flops"] / 1e9))
        print("convolution     {:10,.0f} GFLOP/s".format(content["convolution_flops"] / 1e9))
        print("copy            {:10,.1f} GB/s".format(content["copy_bytes"] / 1e9))


if __name__ == "__main__":
    main()
