"""What this machine can do at best: a matrix product, a convolution, a copy.

    python -m benchmarks.ceilings [--quick] [--json]

Each is repeated for some seconds and its fastest time counts; where `typical`, the median, is far
below 1 of it, the machine had other work to do. Operations are counted as two a
multiply-add; a copy as bytes read plus bytes written. float32 on a CPU, bfloat16 on a GPU, where
everything is random: zeros run faster there.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

SECONDS = 2.0  # of each


SHOWN = (
    ("matrix product", "product_flops", "FLOP"),
    ("convolution", "convolution_flops", "FLOP"),
    ("copy", "copy_bytes", "B"),
)


@dataclass(frozen=True)
class Rate:
    """Operations or bytes a second: of the fastest call, and the median's share of that."""

    best: float
    typical: float

    @classmethod
    def of(cls, work: float, taken: Sequence[float]) -> "Rate":
        return cls(work / min(taken), min(taken) / median(taken))


def spans(work: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each of many calls, from an idle device to an idle device."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        work()
        while not taken or time.perf_counter() < end:
            began_at = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - began_at)
    return taken


def convolution(device: torch.device, seconds: float = SECONDS) -> Rate:
    """Operations of a 3x3 convolution of 256 channels, channels last, forward."""
    n, channels, side = (1024 if device.type == "cuda" else 64), 256, 16
    layer: Any = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layer = layer.to(device, _dtype(device), memory_format=torch.channels_last)
    maps = torch.randn(n, channels, side, side, device=device, dtype=_dtype(device))
    maps = maps.to(memory_format=torch.channels_last)
    operations = 2 * 9 * channels**2 * side**2 * n
    return Rate.of(operations, spans(lambda: layer(maps), device, seconds))


def product(device: torch.device, seconds: float = SECONDS) -> Rate:
    """Operations of a product of two square matrices."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=_dtype(device)) for _ in range(2))
    return Rate.of(2 * n**3, spans(lambda: a @ b, device, seconds))


def copy(device: torch.device, seconds: float = SECONDS) -> Rate:
    """Bytes, read plus written, of a copy that no cache holds."""
    n_bytes = 2**32 if device.type == "cuda" else 2**28
    source = torch.randint(0, 255, (n_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rate.of(2 * n_bytes, spans(lambda: target.copy_(source), device, seconds))


def report(seconds: float) -> dict[str, Any]:
    """All three, ready for JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = {
        "product_flops": product(device, seconds),
        "convolution_flops": convolution(device, seconds),
        "copy_bytes": copy(device, seconds),
    }
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "type": str(_dtype(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **{name: rate.best for name, rate in measured.items()},
        "typical": {name: rate.typical for name, rate in measured.items()},
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
        for what, name, unit in SHOWN:
            best, typical = content[name] / 1e9, content["typical"][name]
            print(f"{what:<15} {best:10,.1f} G{unit}/s, its median {typical:.0%} of that")


if __name__ == "__main__":
    main()
