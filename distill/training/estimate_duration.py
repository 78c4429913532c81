"""Estimate the total training time, with a range, from the first steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch

WARMUP_STEPS = 3  # not timed: kernels are chosen, memory is allocated
LEAST_STEPS, LEAST_S = 3, 5.0  # a measurement has at least 3 blocks or steps, and takes 5 s
BLOCK_S = 1.0  # steps are timed in blocks of this length, so that the host seldom waits for a GPU
LEAST_DOUBT = 0.15  # least relative uncertainty of a mean: other work on the machine varies
FEW_DOUBT = 0.5  # if fewer than LEAST_STEPS were timed, or if later steps take a different time
FORWARD_SHARE = 1 / 3  # forward time / step time: a backward pass takes about twice the forward


@dataclass(frozen=True)
class TimeRange:
    """The mean of `n` measured times in seconds, and a range in which the mean of many more would
    be.
    """

    mean: float
    low: float
    high: float
    n: int

    def scaled(self, factor: float) -> "TimeRange":
        """Return the mean and range for `factor` times the work."""
        return TimeRange(factor * self.mean, factor * self.low, factor * self.high, self.n)


def time_range(seconds: Sequence[float], least_doubt: float = LEAST_DOUBT) -> TimeRange:
    """Return the mean of the times with a range around it.

    The range is mean / (1 + d) to mean * (1 + d), which is always positive. d is two relative
    standard deviations, but at least `least_doubt`, and 0.5 for fewer than three times. The lower
    end is at least 15 % below the mean. Raises StatisticsError if `seconds` is empty.
    """
    mean, n = fmean(seconds), len(seconds)
    doubt = max(least_doubt, FEW_DOUBT if n < LEAST_STEPS else 2 * stdev(seconds) / mean)
    return TimeRange(mean, mean * min(1 - LEAST_DOUBT, 1 / (1 + doubt)), mean * (1 + doubt), n)


@dataclass
class FirstSteps:
    """Times the first steps of a process, in blocks of a second, or of one step if that is longer.

    The first three steps are a warm-up. Timing ends after three blocks or more that take five
    seconds or more in total.
    """

    n_seen: int = 0  # steps, including the warm-up
    n_open: int = 0  # steps of the current block
    began_at: float = 0.0  # begin of the current block, by time.monotonic()
    n_timed: int = 0
    block_means: list[float] = field(default_factory=list)  # seconds per step
    timed_s: float = 0.0
    is_done: bool = False

    def restart(self) -> None:
        """Begin a new block; the time since the last block is not counted."""
        self.n_open, self.began_at = 0, time.monotonic()

    def count_step(self, device: torch.device) -> bool:
        """Count one step; return True after the step that completes the measurement, else False.

        Waits for a GPU at the end of each block.
        """
        if self.is_done:
            return False
        self.n_seen += 1
        if self.n_seen <= WARMUP_STEPS:
            if self.n_seen == WARMUP_STEPS:
                synchronize(device)
                self.restart()
            return False
        self.n_open += 1
        if time.monotonic() - self.began_at < BLOCK_S:
            return False
        synchronize(device)
        self._close_block()
        self.is_done = len(self.block_means) >= LEAST_STEPS and self.timed_s >= LEAST_S
        return self.is_done

    def _close_block(self) -> None:
        seconds = time.monotonic() - self.began_at
        self.block_means.append(seconds / self.n_open)
        self.n_timed, self.timed_s = self.n_timed + self.n_open, self.timed_s + seconds
        self.restart()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
