"""Train a small network for a few steps in each process that torchrun starts.

python two_processes.py FOLDER '{"case": ["optim.lr=0.01"]}'
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from distill.components.build_accelerator import build_accelerator
from distill.components.data_pipeline import split_images
from distill.data.sources import load_data_set
from distill.events import TOTAL
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from distill.teacher.build_teacher import combine_teachers
from distill.teacher.teacher import FrozenTeacher
from distill.training import build
from distill.training.loop import step
from distill.training.train_state import TrainState

STEPS = 8


class PlainNet(nn.Sequential):
    """No batch norm: what it computes does not depend on who else is in the batch."""

    def __init__(self, seed: int, middle: nn.Module | None = None) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2), middle or nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
            nn.Flatten(), nn.Linear(8 * 49, 10),
        )  # fmt: skip

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        return {"maps": self[2], "features": self[3]}


def global_batch(run: TrainState, k: int) -> str:
    """A hash of what all processes see in a step: images and targets, mixed, by sample."""
    rows: list[tuple[int, bytes]] = []
    for view, indices in run.loader.batches(k):
        batch = run.loader.batch(view, indices)
        parts = [
            run.accelerator.gather(each.contiguous()).flatten(1).cpu().numpy()
            for each in (indices[:, None], batch.images, batch.targets)
        ]
        rows += [(int(i[0]), x.tobytes() + y.tobytes()) for i, x, y in zip(*parts, strict=True)]
    return hashlib.sha256(b"".join(row for _, row in sorted(rows))).hexdigest()


def train(out: Path, overrides: Sequence[str]) -> None:
    """Train for a few steps, and save what each saw, its losses and the weights after the last."""
    recipe = recipes.load(
        "tiny+ema",
        [
            "teacher.runs=['none']",
            "optim.clip=1.0",
            *overrides,
        ],
    ).recipe
    accelerator = build_accelerator(recipe)
    images = load_data_set.load("synthetic", "train")
    split = split_images(recipe, images)
    middle = nn.BatchNorm2d(8) if recipe.train.sync_batch_norm else None
    build.build_network = lambda *_: PlainNet(0, middle)  # type: ignore[assignment]
    runs = recipe.teacher.runs
    teacher = FrozenTeacher(combine_teachers(recipe, [PlainNet(1 + i) for i in range(len(runs))]))
    identity = {"teacher": "+".join(runs)}
    run = build.build_state(
        recipe, "student", split, teacher, RunFolder(out), accelerator, identity
    )
    losses = [accelerator.reduce(step(run, k)[TOTAL], "mean").item() for k in range(STEPS)]
    batches = [global_batch(run, k) for k in range(STEPS)]
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    average = torch.cat([p.detach().flatten() for p in run.ema.module.parameters()])
    if accelerator.is_main_process:
        np.savez(
            out, losses=losses, weights=weights, average=average, batches=batches,
            n=accelerator.num_processes,
        )  # fmt: skip


def main(folder: Path, cases: dict[str, list[str]]) -> None:
    """Train each case, overrides by name, with a cache of its own, and save it as NAME.npz."""
    folder.mkdir(exist_ok=True)
    for name, overrides in cases.items():
        os.environ["UNDERSTUDY_CACHE"] = str(folder / f"{name}-cache")
        train(folder / f"{name}.npz", overrides)
    Accelerator().end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
