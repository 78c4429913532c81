"""The step and the loop. The step is the algorithm; the loop yields events and prints nothing."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from distill.data import draws
from distill.data.loader import Loader
from distill.data.sources import ImageSet
from distill.engine import checkpoint
from distill.engine.evaluate import measure
from distill.engine.metrics import Means
from distill.engine.teach import Live, Teach
from distill.errors import UserError
from distill.events import IMAGES_PER_S, LR, TOTAL, Epoch, Event, Step, loss_name, measure_name
from distill.losses.objective import Answers, Objective
from distill.run_folder import RunFolder


class Diverged(Exception):
    """The loss is not a finite number; the last checkpoint is still good."""


@dataclass
class Best:
    """The epoch whose weights are kept, by `top1` on the held-out part."""

    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Training:
    """Everything a run is made of. Built in `build.py`; nothing here knows where it came from."""

    accelerator: Accelerator
    loader: Loader
    net: nn.Module  # prepared: DDP where there are several processes
    student: nn.Module  # the same network, bare
    live: Live | None  # the teacher itself, where there is one
    teach: Teach
    objective: nn.Module  # prepared: DDP where its terms have parameters
    criterion: Objective  # the same, bare
    optimizer: Any  # accelerate's wrapper of a torch optimizer
    lr: Callable[[int], float]
    clip: float | None
    ema: ModelEmaV3 | None
    held_out: ImageSet | None
    seed: int  # of dropout; initial weights are already drawn
    total_steps: int
    log_every: int
    save_every: int
    folder: RunFolder
    identity: dict[str, str]  # fingerprints of data and teacher: a resumed run must have the same
    compiled: bool = False
    step: int = 0  # optimizer steps done
    best: Best = field(default_factory=Best)
    best_weights: dict[str, Tensor] | None = None  # not yet on disk
    elapsed_s: float = 0.0  # over the whole run, however often resumed

    @property
    def epochs(self) -> int:
        """Of which the last one may be broken off: a budget in minutes is one in steps."""
        return -(-self.total_steps // self.loader.steps_per_epoch)

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained: the student's, and those of the terms."""
        return [*self.net.parameters(), *self.objective.parameters()]


def step(run: Training, k: int) -> dict[str, Tensor]:
    """Optimizer step k: the global batch once, in equal parts over processes and accumulation.

    Returns every loss term, unweighted, and `total`, as scalars on the device: no host
    synchronisation here.
    """
    means: dict[str, Tensor] = {}
    progress = k / run.total_steps
    needs = run.criterion.needs(progress)
    for group in run.optimizer.param_groups:
        group["lr"] = run.lr(k)
    parts = run.loader.batches(k)
    for part, (view, rows) in enumerate(parts):
        with run.accelerator.accumulate(run.net, run.objective):
            images, targets = run.loader.augment(view, rows), run.loader.one_hot(rows)
            images, targets = run.loader.mix(view, rows, images, targets)
            lesson = run.teach(view, rows, images, needs)  # on the student's pixels
            torch.manual_seed(draws.torch_seed(run.seed, k, part, run.accelerator.process_index))
            said, samples = run.net(images), rows.to(images.device)
            answers = Answers(
                said.logits, targets, lesson.logits, said.taps, lesson.taps, samples, lesson.pair
            )
            losses = run.objective(answers, progress)
            run.accelerator.backward(losses[TOTAL])
            run.criterion.rest(progress)
            if run.clip is not None and run.accelerator.sync_gradients:
                run.accelerator.clip_grad_norm_(run.parameters(), run.clip)
            run.optimizer.step()  # accelerate skips it until the last part
            run.optimizer.zero_grad()
        for name, value in losses.items():
            means[name] = means.get(name, 0) + value.detach() / len(parts)
    if run.ema is not None:
        run.ema.update(run.student, step=k + 2)  # timm's warm-up at t + 2 is (1 + t) / (10 + t)
    return means


def train(run: Training) -> Iterator[Event]:
    """Every epoch from where the run stands: steps, validation, checkpoint. Yields Step and Epoch.

    Raises Diverged at the first log point or epoch end whose loss is not finite, before anything is
    saved.
    """
    began_at, began_step, earlier_s = time.monotonic(), run.step, run.elapsed_s
    while run.step < run.total_steps:
        losses = yield from _epoch(run)
        epoch = -(-run.step // run.loader.steps_per_epoch)
        agree(run)
        measured = validate(run)
        is_best = _keep_if_best(run, epoch, measured)
        spent_s = time.monotonic() - began_at
        run.elapsed_s = earlier_s + spent_s
        remaining_s = spent_s / (run.step - began_step) * (run.total_steps - run.step)
        if epoch % run.save_every == 0 or epoch == run.epochs:
            save(run)  # before the word is given: who sees an epoch end may stop there
        yield Epoch(epoch, run.step, losses | measured, is_best, spent_s, remaining_s)


def _epoch(run: Training) -> Generator[Step, None, dict[str, float]]:
    """The steps to the end of the epoch; returns the mean losses of all of them."""
    whole, window, since = Means(), Means(), time.monotonic()
    run.net.train()
    for k in range(run.step, _end_of_epoch(run)):
        losses = step(run, k)
        whole.add(losses)
        window.add(losses)
        run.step = k + 1
        if run.step % run.log_every == 0:
            n_images = window.count * run.loader.batch_size
            metrics = _losses(window.read(run.accelerator), run.step)
            speed = n_images / (time.monotonic() - since)
            epoch = k // run.loader.steps_per_epoch
            yield Step(run.step, epoch, metrics | {LR: run.lr(k), IMAGES_PER_S: speed})
            since = time.monotonic()
    return _losses(whole.read(run.accelerator), run.step)


def _end_of_epoch(run: Training) -> int:
    whole = (run.step // run.loader.steps_per_epoch + 1) * run.loader.steps_per_epoch
    return min(whole, run.total_steps)


def _losses(means: dict[str, float], at_step: int) -> dict[str, float]:
    """Means under their metric names; a loss that is not finite ends the run."""
    if not all(map(math.isfinite, means.values())):
        raise Diverged(f"the loss is not finite before step {at_step}: {means}")
    return {loss_name(name): value for name, value in means.items()}


def agree(run: Training) -> None:
    """Give every process rank 0's running statistics, of the net and of its average.

    Between two forwards each process has its own; what is measured must be what is kept.
    """
    for net in (run.student, run.ema.module) if run.ema is not None else (run.student,):
        broadcast(list(net.buffers()))


def validate(run: Training) -> dict[str, float]:
    """Measures of the net, and of its average where there is one, on the held-out part."""
    if run.held_out is None:
        return {}
    values = measure(run.student, run.held_out, run.accelerator)
    metrics = {measure_name(name, "val"): value for name, value in values.items()}
    if run.ema is not None:
        with run.accelerator.autocast():  # as the net, whose forward accelerate has wrapped
            values = measure(run.ema.module, run.held_out, run.accelerator)
        metrics |= {measure_name(name, "val_ema"): value for name, value in values.items()}
    return metrics


def weights_to_use(run: Training) -> nn.Module:
    """The network to keep: the average where the run has one."""
    return run.student if run.ema is None else run.ema.module


def _keep_if_best(run: Training, epoch: int, metrics: dict[str, float]) -> bool:
    """Keep this epoch's weights if it is the best so far; with nothing held out, always."""
    chosen_by = measure_name("top1", "val" if run.ema is None else "val_ema")
    is_best = run.held_out is None or metrics[chosen_by] > run.best.metrics.get(chosen_by, -1.0)
    if is_best:
        run.best = Best(epoch, metrics)
        run.best_weights = checkpoint.weights_of(weights_to_use(run))
    return is_best


def best_file(run: Training) -> Path:
    """The weights of the best epoch. Named by it, so that no checkpoint finds another's."""
    return run.folder.best / f"epoch-{run.best.epoch}.safetensors"


def save(run: Training) -> None:
    """Write `best/`, if there is a new one, and `last/`: enough to resume exactly."""
    if run.accelerator.is_main_process:
        if run.best_weights is not None:
            checkpoint.save_weights(best_file(run), run.best_weights)
        progress = {
            "step": run.step,
            "total_steps": run.total_steps,
            "compiled": run.compiled,
            "elapsed_s": run.elapsed_s,
            "best": vars(run.best),
        } | run.identity
        checkpoint.save(
            run.folder.last, {k: v.state_dict() for k, v in stateful(run).items()}, progress
        )
        for outdone in run.folder.best.glob("epoch-*"):
            if outdone != best_file(run):
                outdone.unlink()
    run.best_weights = None
    run.accelerator.wait_for_everyone()


def resume(run: Training) -> dict[str, Any]:
    """Put the run back to where its last checkpoint stood; at the start where there is none.

    Returns what the checkpoint says beside: `total_steps` and `compiled`, which were decided then.
    """
    found = checkpoint.load(run.folder.last, run.accelerator.device)
    if found is None:
        return {}
    tensors, progress = found
    changed = [name for name, value in run.identity.items() if progress.get(name) != value]
    if changed:
        raise UserError(
            f"{run.folder.path} cannot be resumed: its {' and '.join(changed)} changed since "
            "it began.\n"
            "Bring the former back, or begin anew with another --out."
        )
    for name, part in stateful(run).items():
        if name in tensors:  # a scaler is new where the device changed, and begins anew
            part.load_state_dict(tensors[name])
    run.step, run.elapsed_s = progress["step"], progress["elapsed_s"]
    run.best = Best(**progress["best"])
    return progress


def stateful(run: Training) -> dict[str, Any]:
    """All that training changes, by name: what a checkpoint holds."""
    parts = {"student": run.student, "optimizer": run.optimizer}
    if run.ema is not None:
        parts["ema"] = run.ema.module
    if run.criterion.state_dict():
        parts["objective"] = run.criterion
    if run.accelerator.scaler is not None:
        parts["scaler"] = run.accelerator.scaler
    return parts
