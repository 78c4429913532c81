"""Measure the peak speed of this machine: a matrix product, a convolution, a copy.

    python -m benchmarks.ceilings [--quick] [--json]

Each of the three is repeated for some seconds; the speed of the fastest call is reported. `typical`
is the speed of the median call divided by the speed of the fastest one: far below 1, other programs
used the machine. A multiply-add counts as two operations, a copy as the bytes read plus the bytes
written. The data type is float32 on a CPU and bfloat16 on a GPU. All values are random, because a
GPU computes faster on zeros.
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

SECONDS = 2.0  # per measurement


SHOWN = (
    ("matrix product", "product_flops", "FLOP"),
    ("convolution", "convolution_flops", "FLOP"),
    ("copy", "copy_bytes", "B"),
)


@dataclass(frozen=True)
class Rate:
    """The measured speed of a kind of call."""

    best: float  # operations or bytes per second of the fastest call
    typical: float  # speed of the median call / speed of the fastest call, 0..1

    @classmethod
    def of(cls, work: float, spans_s: Sequence[float]) -> "Rate":
        """Return the rate of calls of `work` operations (or bytes) each, which took `spans_s`
        seconds.
        """
        return cls(work / min(spans_s), min(spans_s) / median(spans_s))


def spans(work: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Call `work` repeatedly for `seconds`; return the seconds of each call, including its work on
    the device.
    """
    spans_s: list[float] = []
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        work()
        while not spans_s or time.perf_counter() < end:
            began_at = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spans_s.append(time.perf_counter() - began_at)
    return spans_s


def convolution(device: torch.device, seconds: float = SECONDS) -> Rate:
    """Measure the operations per second of a 3x3 convolution, 256 channels, NHWC, forward."""
    n, channels, side = (1024 if device.type == "cuda" else 64), 256, 16
    layer: Any = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    layer = layer.to(device, _dtype(device), memory_format=torch.channels_last)
    maps = torch.randn(n, channels, side, side, device=device, dtype=_dtype(device))
    maps = maps.to(memory_format=torch.channels_last)
    operations = 2 * 9 * channels**2 * side**2 * n
    return Rate.of(operations, spans(lambda: layer(maps), device, seconds))


def product(device: torch.device, seconds: float = SECONDS) -> Rate:
    """Measure the operations per second of a product of two square matrices."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=_dtype(device)) for _ in range(2))
    return Rate.of(2 * n**3, spans(lambda: a @ b, device, seconds))


def copy(device: torch.device, seconds: float = SECONDS) -> Rate:
    """Measure the bytes per second, read plus written, of a copy larger than any cache."""
    n_bytes = 2**32 if device.type == "cuda" else 2**28
    source = torch.randint(0, 255, (n_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rate.of(2 * n_bytes, spans(lambda: target.copy_(source), device, seconds))


def report(seconds: float) -> dict[str, Any]:
    """Return all three measurements, of `seconds` each, as values for JSON."""
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
    """Run the command line of this module."""
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
        for title, name, unit in SHOWN:
            best, typical = content[name] / 1e9, content["typical"][name]
            print(f"{title:<15} {best:10,.1f} G{unit}/s, median {typical:.0%} of that")


if __name__ == "__main__":
    main()
