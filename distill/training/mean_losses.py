"""Average named losses over steps, on the device."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class RunningMeans:
    """Averages named scalars over steps. Sums stay on the device; only `read` waits for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}  # number of values; a loss term may be inactive in a step
        self.count = 0  # number of steps

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1
        self.count += 1

    def state_dict(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the counts, and the sums of every process [processes, names]; None without any.

        Called by all processes.
        """
        own = torch.stack(list(self.sums.values()))[None] if self.sums else None
        all_sums = None if own is None else accelerator.gather(own)
        return {"counts": dict(self.counts), "count": self.count, "sums": all_sums}

    def load_state_dict(self, state: dict[str, Any], accelerator: Accelerator) -> None:
        """Load this process's sums from a state dict of all processes.

        If the number of processes changed, each one loads the mean of all sums.
        """
        self.counts, self.count, self.sums = dict(state["counts"]), state["count"], {}
        if (all_sums := state["sums"]) is not None:
            is_same = len(all_sums) == accelerator.num_processes
            own = all_sums[accelerator.process_index] if is_same else all_sums.mean(0)
            self.sums = dict(zip(self.counts, own.to(accelerator.device), strict=True))

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over processes and over the steps since the last call, and reset them.

        Costs one transfer from the device. Returns an empty dictionary if no step was added.
        """
        if not self.count:
            return {}
        stacked = torch.stack([total / self.counts[name] for name, total in self.sums.items()])
        names = list(self.sums)
        self.sums, self.counts, self.count = {}, {}, 0
        means: Tensor = accelerator.reduce(stacked, reduction="mean")
        return dict(zip(names, means.tolist(), strict=True))
