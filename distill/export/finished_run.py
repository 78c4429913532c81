"""A finished run as the export formats need it."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.data.images import ImageSet, Progress
from distill.data.sources import image_set, synthetic
from distill.errors import UserError
from distill.evaluation import saved_predictions
from distill.events import measure_name
from distill.format import describe_class_difference
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs.run_folder import Role, RunFolder, check_is_tested
from distill.statistics import Interval, wilson
from distill.training import build

N_COMPARED = 256  # images: enough to see another network, few enough for a large teacher on a CPU
N_CALIBRATION = 512  # images; from 128 to 1,024 the agreement with float is 97.6 to 97.9 %


@dataclass(frozen=True)
class FinishedRun:
    """A finished run and its network, on the host and in eval mode; `source` names its data."""

    folder: RunFolder
    recipe: Recipe
    result: dict[str, Any]
    net: nn.Module
    source: str
    is_own_data: bool  # nobody said --data
    progress: Progress | None

    @property
    def role(self) -> Role:
        role: Role = self.result["role"]
        return role

    @property
    def class_names(self) -> list[str]:
        names: list[str] = self.result["class_names"]
        return names

    @property
    def top1(self) -> float:
        """Share of the test split that is right, as the run measured it."""
        share: float = self.result["metrics"][measure_name("top1", "test")]
        return share

    @cached_property
    def n_test(self) -> int | None:
        """Images of the test split that the run was measured on; None where its evaluation.npz is
        gone or damaged: an export goes without.
        """
        with suppress(UserError):
            if (answers := saved_predictions.read_run(self.folder)) is not None:
                return len(answers.labels)
        return None

    @property
    def interval(self) -> Interval | None:
        """Wilson's, of `top1`: the doubt that the number of test images leaves."""
        n = self.n_test
        return None if n is None else wilson(round(self.top1 * n), n)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())

    @cached_property
    def train_split(self) -> ImageSet:
        """Raises UserError where the data is not there or has other classes than the run."""
        images = image_set.load(self.source, "train", progress=self.progress)
        if list(images.class_names) != self.class_names:
            ours, theirs = describe_class_difference(self.class_names, images.class_names)
            raise UserError(
                f"run {self.folder.path} knows the classes {ours}; {self.source} has {theirs}.\n"
                "Give --data with the run's own classes."
            )
        return images

    def comparison_images(self) -> tuple[Tensor, str]:
        """Images uint8 [N, 3, 32, 32] to hold an export against the network, and what they are.

        256 held-out ones; training images where fewer are held out; drawn ones where the run's own
        data is gone. Raises UserError where --data is not there.
        """
        try:
            images = self.train_split
        except UserError:
            if not self.is_own_data:
                raise
            drawn = synthetic.draw("train").images[:N_COMPARED]
            return torch.from_numpy(drawn), "procedural images, for the run's own are not there"
        train, held_out = build.split_indices(self.recipe, images)
        is_enough = len(held_out) >= N_COMPARED
        chosen = (held_out if is_enough else train)[:N_COMPARED]
        return _pixels(images, chosen), "held-out images" if is_enough else "training images"

    def calibration_images(self) -> Tensor:
        """Training images uint8 [N, 3, 32, 32], as they are; never held-out or test ones."""
        train, _ = build.split_indices(self.recipe, self.train_split)
        return _pixels(self.train_split, train[:N_CALIBRATION])


def load_finished(folder: RunFolder, data: str | None, progress: Progress | None) -> FinishedRun:
    """Raises UserError where the run is not finished, was not measured on the test split, or its
    weights are not its own.
    """
    check_is_tested(folder)
    recipe = recipes.read(folder.recipe)
    return FinishedRun(
        folder=folder,
        recipe=recipe,
        result=folder.result(),
        net=build.load_trained(folder),
        source=data or recipe.data.source,
        is_own_data=data is None,
        progress=progress,
    )


def _pixels(images: ImageSet, indices: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.images[indices]))
