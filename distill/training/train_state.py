"""Hold the state of a training: its networks, data, optimizer, settings and progress."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.data.image_set import ImageSet, Progress
from distill.data.loader import Loader
from distill.events import Split
from distill.losses.objective import Objective
from distill.recipe.schema import Train
from distill.runs.run_folder import Role, RunFolder
from distill.teacher.teacher import LiveTeacher, OneTeacherPerView, Teacher
from distill.training.agree_on_stopping import ProcessAgreement
from distill.training.divergence import DivergenceMonitor
from distill.training.estimate_duration import FirstSteps
from distill.training.mean_losses import RunningMeans
from distill.training.signals import StopSignal


@dataclass
class BestEpoch:
    """The best epoch so far by `top1` on the held-out part; the last one if nothing is held out."""

    epoch: int = 0  # from 1; 0 before the first validation
    metrics: dict[str, float] = field(default_factory=dict)  # on the held-out part
    weights: str = ""  # the fingerprint of the file with the epoch's weights


@dataclass
class TrainState:
    """Everything that a training reads and changes. Built by `build.build_state`."""

    role: Role
    accelerator: Accelerator
    loader: Loader
    model_ddp: nn.Module  # prepared: DDP if there are several processes
    model: nn.Module  # the same network without DDP
    live_teacher: LiveTeacher | OneTeacherPerView | None  # computes all logits, reads no cache
    teacher: Teacher  # queried in each step; reads the cache if the recipe has one
    loss_ddp: nn.Module  # prepared: DDP if its terms have parameters
    loss: Objective  # the same objective without DDP
    optimizer: Any  # accelerate's wrapper of a torch optimizer
    lr: Callable[[int], float]  # learning rate of a step, from 0
    clip: float | None  # largest norm of the gradient
    ema: ModelEmaV3 | None  # moving average of the model's weights
    held_out: ImageSet | None  # images for validation
    norm_images: Tensor | None  # uint8 [n, 3, H, W], for the averaged weights' batch norms
    seed: int  # of dropout
    total_steps: int
    settings: Train  # the recipe's [train]: intervals of logging and saving, validation, retries
    folder: RunFolder
    identity: dict[str, str]  # fingerprints of data and teacher: a resumed run must have the same
    ranks: ProcessAgreement
    divergence: DivergenceMonitor
    stop_signal: StopSignal = field(default_factory=StopSignal)
    progress: Progress | None = None  # called with the task, what is done of it, and its total
    first_steps: FirstSteps = field(default_factory=FirstSteps)  # times the steps of this process
    epochs_to_save: frozenset[int] = frozenset()  # after which the weights are saved, from 1
    compiled: bool = False
    step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs trained, validated and reported
    epoch_losses: RunningMeans = field(default_factory=RunningMeans)  # of the current epoch
    log_losses: RunningMeans = field(default_factory=RunningMeans)  # since the last Step event
    retries: int = 0
    lr_factor: float = 1.0  # smaller after each retry
    best: BestEpoch = field(default_factory=BestEpoch)
    best_weights: dict[str, Tensor] | None = None  # of the best epoch, not yet on disk
    earlier_s: float = 0.0  # seconds of training in earlier processes of this run
    preparation_s: float = 0.0  # seconds of preparing the training, in all processes of this run
    began_at: float = field(default_factory=time.monotonic)
    began_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    saved_step: int = 0

    @property
    def epochs(self) -> int:
        """The number of epochs. The last one is partial if the number of steps is not a multiple.

        That may happen with a budget in minutes, which is converted to steps.
        """
        return -(-self.total_steps // self.loader.steps_per_epoch)

    @property
    def end_of_epoch(self) -> int:
        """The total number of steps that are done when the current epoch ends."""
        return min((self.epoch + 1) * self.loader.steps_per_epoch, self.total_steps)

    @property
    def stateful(self) -> dict[str, Any]:
        """All objects that a step changes and that have a `state_dict`, by name."""
        parts = {"student": self.model, "optimizer": self.optimizer}
        if self.ema is not None:
            parts["ema"] = self.ema.module
        if self.loss.state_dict():
            parts["objective"] = self.loss
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return parts

    @property
    def final_weights(self) -> nn.Module:
        """The network with the weights that are saved: the averaged ones if the run averages
        weights, else the trained ones.
        """
        return self.model if self.ema is None else self.ema.module

    @property
    def networks_to_validate(self) -> dict[Split, nn.Module]:
        """The networks to validate after each epoch, by the split name of their measures.

        `val_ema` is the averaged network, `val` the trained one. If the run averages weights, the
        trained one is only validated with `train.validate_both`.
        """
        if self.ema is None:
            return {"val": self.model}
        trained: dict[Split, nn.Module] = {"val": self.model} if self.settings.validate_both else {}
        return trained | {"val_ema": self.ema.module}

    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters: the model's and those of the loss terms."""
        return [*self.model_ddp.parameters(), *self.loss_ddp.parameters()]

    def start_clock(self, earlier_s: float | None = None) -> None:
        """Start to count the training time of this process now.

        `earlier_s`: seconds of training in earlier processes; None to leave it unchanged.
        """
        self.began_at = self.saved_at = time.monotonic()
        self.began_step = self.saved_step = self.step
        self.earlier_s = self.earlier_s if earlier_s is None else earlier_s

    @property
    def process_s(self) -> float:
        """Seconds of training in this process."""
        return time.monotonic() - self.began_at

    @property
    def elapsed_s(self) -> float:
        """Seconds of training of the whole run, including earlier processes."""
        return self.earlier_s + self.process_s

    @property
    def remaining_s(self) -> float:
        """Seconds to the last step, at the speed since this process began; NaN before its first
        step.

        The time of a step is assumed to be proportional to the pixels of its images.
        """
        done = self._weighted_steps(self.began_step, self.step)
        return (
            self.process_s / done * self._weighted_steps(self.step, self.total_steps)
            if done
            else math.nan
        )

    def _weighted_steps(self, begin: int, end: int) -> float:
        """Return the number of steps in [begin, end), each weighted by the pixels of an image
        relative to full size.
        """
        if not self.loader.schedule.sides:
            return end - begin
        per_epoch, full, work = self.loader.steps_per_epoch, self.loader.size, 0.0
        for epoch in range(begin // per_epoch, -(-end // per_epoch)):
            first, last = max(begin, epoch * per_epoch), min(end, (epoch + 1) * per_epoch)
            side = self.loader.schedule.side(epoch) or full
            work += (last - first) * (side / full) ** 2
        return work

    @property
    def is_step_to_save(self) -> bool:
        """Whether `train.save_steps` steps were taken since the last checkpoint.

        The same in all processes.
        """
        steps = self.settings.save_steps
        return steps is not None and self.step - self.saved_step >= steps

    @property
    def is_time_to_save(self) -> bool:
        """Whether `train.save_minutes` have passed since the last checkpoint, by this process's
        clock.
        """
        minutes = self.settings.save_minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    def mark_saved(self) -> None:
        """Record that a checkpoint was written now."""
        self.saved_at, self.saved_step = time.monotonic(), self.step
