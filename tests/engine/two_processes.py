"""Run by torchrun: some steps of a small network without batch norm, through the real `step`.

Writes the losses, and the parameters after the last step, to the file named as its argument.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distill import recipe as recipes
from distill.data import sources
from distill.engine import build
from distill.engine.teach import Frozen
from distill.engine.train import step
from distill.events import TOTAL
from distill.run_folder import RunFolder

STEPS = 8


class PlainNet(nn.Sequential):
    """No batch norm: what it computes does not depend on who else is in the batch."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(),
            nn.Linear(8 * 49, 10),
        )  # fmt: skip

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        return {"maps": self[2], "features": self[3]}


def main(out: Path, accumulate: int, *overrides: str) -> None:
    """Train for a few steps and keep what came out."""
    recipe = recipes.load(
        "tiny+ema",
        [
            "teacher.runs=['none']",
            f"train.accumulate={accumulate}",
            "optim.clip=1.0",
            *overrides,
        ],
    ).recipe
    accelerator = build.accelerator(recipe)
    images = sources.load("synthetic", "train")
    split = build.divide(recipe, images)
    build.network = lambda *_: PlainNet(0)  # type: ignore[assignment]
    run = build.training(
        recipe, "student", split, Frozen(PlainNet(1)), RunFolder(out), accelerator, {}
    )
    losses = [accelerator.reduce(step(run, k)[TOTAL], "mean").item() for k in range(STEPS)]
    weights = torch.cat([p.detach().flatten() for p in run.student.parameters()])
    average = torch.cat([p.detach().flatten() for p in run.ema.module.parameters()])
    if accelerator.is_main_process:
        np.savez(out, losses=losses, weights=weights, average=average, n=accelerator.num_processes)
    del run  # DistributedDataParallel goes before its process group
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
