"""Load from a finished run everything that the export formats need."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.components.build_network import load_trained
from distill.components.data_pipeline import split_indices
from distill.data.image_set import ImageSet, Progress
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.events import measure_name
from distill.format import describe_class_difference
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs import read_predictions
from distill.runs.run_folder import Role, RunFolder, check_is_tested
from distill.statistics import Interval, wilson

# Images on which an export is compared with the run: enough to detect another network, and few
# enough for a large teacher on a CPU.
N_COMPARED = 256
# Images for calibration in 8 bits; from 128 to 1,024 images the agreement with float is 97.6 to
# 97.9 %.
N_CALIBRATION = 512

PredictFn = Callable[[Tensor], Tensor]  # float32 images [B, 3, S, S] in [0, 1] to logits [B, C]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with its network, and the data to calibrate and compare exports on."""

    folder: RunFolder
    recipe: Recipe
    result: dict[str, Any]  # content of result.json
    net: nn.Module  # on the CPU, in eval mode
    source: str  # the data source
    is_own_data: bool  # whether `source` is the run's own, not given by --data
    n_test: int | None  # test images; None if evaluation.npz is missing or damaged
    progress: Progress | None

    @property
    def role(self) -> Role:
        role: Role = self.result["role"]
        return role

    @property
    def image_size(self) -> int:
        """Height and width of the run's images in pixels."""
        return self.recipe.data.image_size

    @property
    def class_names(self) -> list[str]:
        names: list[str] = self.result["class_names"]
        return names

    @property
    def top1(self) -> float:
        """Accuracy on the test split, 0..1, as the run measured it."""
        share: float = self.result["metrics"][measure_name("top1", "test")]
        return share

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of `top1`; None if the number of test images is unknown."""
        n = self.n_test
        return None if n is None else wilson(round(self.top1 * n), n)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    @cached_property
    def train_split(self) -> ImageSet:
        """The train split of the data. Raises UserError if it is missing or has other classes than
        the run.
        """
        images = load_data_set.load(
            self.source, "train", size=self.image_size, progress=self.progress
        )
        if list(images.class_names) != self.class_names:
            of_run, of_data = describe_class_difference(self.class_names, images.class_names)
            raise UserError(
                f"run {self.folder.path} has the classes {of_run}; {self.source} has {of_data}.\n"
                "Give --data with the same classes as the run."
            )
        return images

    def comparison_images(self) -> tuple[Tensor, str]:
        """Return the images, uint8 [N, 3, S, S], on which an export is compared with the run, and
        a description of them.

        They are 256 held-out images; training images if fewer are held out; synthetic images if the
        run's own data is missing. Raises UserError if the data given by --data is missing.
        """
        try:
            images = self.train_split
        except UserError:
            if not self.is_own_data:
                raise
            drawn = load_data_set.load(load_data_set.SYNTHETIC, "train", size=self.image_size)
            return torch.from_numpy(
                drawn.images[:N_COMPARED]
            ), "synthetic images, as the run's own are missing"
        train, held_out = split_indices(self.recipe, images)
        is_enough = len(held_out) >= N_COMPARED
        chosen = (held_out if is_enough else train)[:N_COMPARED]
        return _pixels(images, chosen), "held-out images" if is_enough else "training images"

    def calibration_images(self) -> Tensor:
        """Return training images, uint8 [N, 3, S, S], without augmentation.

        Held-out and test images are not used. Raises UserError if the data is missing.
        """
        train, _ = split_indices(self.recipe, self.train_split)
        return _pixels(self.train_split, train[:N_CALIBRATION])


def load_finished(folder: RunFolder, data: str | None, progress: Progress | None) -> FinishedRun:
    """Load a finished run. `data`: the data source; None for the run's own.

    Raises UserError if the run is not finished or was not measured on the test split, if its
    weights have changed since, or if result.json contradicts the saved predictions.
    """
    check_is_tested(folder)
    recipe = recipes.read(folder.recipe)
    return FinishedRun(
        folder=folder,
        recipe=recipe,
        result=folder.result(),
        net=load_trained(folder),
        source=data or recipe.data.source,
        is_own_data=data is None,
        n_test=read_predictions.n_test_images(folder),
        progress=progress,
    )


def _pixels(images: ImageSet, indices: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.images[indices]))
