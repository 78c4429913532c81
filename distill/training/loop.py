"""The training step and the loop, which yields events and prints nothing."""

import time
from collections.abc import Iterator

import torch
from accelerate.utils import broadcast
from torch import Tensor

from distill.data import rng
from distill.errors import Failure, UserError
from distill.evaluation.predict import measure
from distill.events import (
    IMAGES_PER_S,
    LR,
    TOTAL,
    Epoch,
    Estimate,
    Event,
    Retry,
    Step,
    loss_name,
    measure_name,
)
from distill.losses.objective import LossInputs
from distill.models import batch_norm, checkpoint, epoch_weights
from distill.training import estimate, optim, resume
from distill.training.divergence import Diverged, gradient_norm
from distill.training.signals import Stopped
from distill.training.state import BestEpoch, TrainState

LEAST_TOTAL_S = 60.0  # no estimate of the total time is given for shorter runs
SAVE = 1  # a request; larger ones are the exit codes of a requested stop


def step(run: TrainState, k: int) -> dict[str, Tensor]:
    """Optimizer step k: the global batch once, in equal parts over processes and accumulation.

    Returns every loss term, unweighted, and `total`, as scalars on the device: no host
    synchronisation here. Raises Diverged on a CPU, before the weights change.
    """
    means: dict[str, Tensor] = {}
    progress = k / run.total_steps
    needs = run.loss.needs(progress)
    for group in run.optimizer.param_groups:
        group["lr"] = optim.group_lr(group, run.lr(k) * run.lr_factor)
    parts = run.loader.batches(k)
    for part, (view, rows) in enumerate(parts):
        with run.accelerator.accumulate(run.model_ddp, run.loss_ddp):
            images, targets = run.loader.augment(view, rows), run.loader.one_hot(rows)
            images, targets = run.loader.mix(view, rows, images, targets)
            images = run.loader.resized(view, images)
            teacher = run.teacher(view, rows, images, needs)  # no gradient
            torch.manual_seed(rng.torch_seed(run.seed, k, part, run.accelerator.process_index))
            student, samples = run.model_ddp(images), rows.to(images.device)
            inputs = LossInputs(
                student.logits,
                targets,
                teacher.logits,
                student.taps,
                teacher.taps,
                samples,
                teacher.unmixed,
            )
            losses = run.loss_ddp(inputs, progress)
            run.accelerator.backward(losses[TOTAL])
            run.loss.clear_inactive_grads(progress)
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / len(parts)
            if run.accelerator.sync_gradients:
                run.divergence.record(k + 1, means[TOTAL], clip_gradient(run))
            run.optimizer.step()  # accelerate skips it until the last part
            run.optimizer.zero_grad()
    if run.ema is not None:
        run.ema.update(run.model, step=k + 2)  # timm's warm-up at t + 2 is (1 + t) / (10 + t)
    return means


def clip_gradient(run: TrainState) -> Tensor | None:
    """The gradient's norm before it is bound, as the recipe says.

    None under a loss scaler: gradients that overflow are its business, and it skips the step.
    """
    norm = None
    if run.clip is not None:
        norm = run.accelerator.clip_grad_norm_(run.parameters(), run.clip)
    if run.accelerator.scaler is not None:
        return None
    return gradient_norm(run.parameters()) if norm is None else norm


def train(run: TrainState) -> Iterator[Event]:
    """Every epoch from where the run stands: steps, validation, checkpoints.

    Yields Step, Estimate, Epoch and Retry, each before what it tells is saved, so that a resumed
    run tells nothing twice and leaves nothing out. Raises Diverged where loss or gradient are not
    finite and no retry is left, before anything is saved; Stopped where somebody asked for it,
    after.
    """
    run.start_clock()
    with run.stop_signal.defer():
        if run.step == 0:
            resume.save(run)  # a disk that does not take it is known now
        while run.epoch < run.epochs:
            try:
                yield from _epoch(run)
            except Diverged as fault:
                yield _rollback(run, fault)
                resume.save(run)  # that it went back, too
        _stop_if_requested(run, run.ranks.now(run.stop_signal.code))


def _epoch(run: TrainState) -> Iterator[Event]:
    """What is left of the epoch: steps, validation, a checkpoint where one is due."""
    yield from _steps(run)
    re_estimate_batch_norm(run)
    broadcast_buffers(run)
    measured = validate(run)
    is_best = _record_if_best(run, measured)
    run.epoch += 1
    _save_epoch_weights(run)
    losses = _as_metrics(run.epoch_losses.read(run.accelerator))
    yield Epoch(run.epoch, run.step, losses | measured, is_best, run.process_s, run.remaining_s)
    if run.epoch % run.settings.save_every == 0 or run.epoch == run.epochs:
        resume.save(run)


def _save_epoch_weights(run: TrainState) -> None:
    """Save the final weights of every n-th epoch and of the last, if `train.keep_epochs` is n.

    They are on disk before the checkpoint that counts the epoch, so that a resumed run leaves no
    gap. Raises OSError if they cannot be written.
    """
    every = run.settings.keep_epochs
    is_due = every is not None and (run.epoch % every == 0 or run.epoch == run.epochs)
    if is_due and run.accelerator.is_main_process:
        epoch_weights.save(run.folder, run.epoch, run.final_weights)


def _steps(run: TrainState) -> Iterator[Step | Estimate]:
    """The steps to the end of the epoch."""
    since, n_images = time.monotonic(), 0
    run.model_ddp.train()
    run.first_steps.restart()
    for k in range(run.step, run.end_of_epoch):
        losses = step(run, k)
        run.epoch_losses.add(losses)
        run.log_losses.add(losses)
        run.step, n_images = k + 1, n_images + run.loader.batch_size
        if run.step % run.settings.log_every == 0:
            run.divergence.raise_if_diverged()
            metrics = _as_metrics(run.log_losses.read(run.accelerator))
            metrics |= {
                LR: run.lr(k) * run.lr_factor,
                IMAGES_PER_S: n_images / (time.monotonic() - since),
            }
            yield Step(run.step, run.epoch, metrics)
            since, n_images = time.monotonic(), 0
        if run.first_steps.count_step(run.accelerator.device):
            yield from _estimate(run)
        wish = run.ranks(run.stop_signal.code or (SAVE if run.is_time_to_save else 0))
        if wish or run.is_step_to_save:
            run.ranks.reset()
            resume.save(run)
            _stop_if_requested(run, wish)
    run.divergence.raise_if_diverged()


def _estimate(run: TrainState) -> Iterator[Estimate]:
    """How long the run takes in all, by its first steps; nothing of a run of less than a minute.

    Validation is counted as forward passes. Steps of which some have other terms or read stored
    teacher logits take another time than those that were measured: the range is wider.
    """
    first = run.first_steps
    varies = run.teacher.is_cached or len(run.loss.change_points) > 1
    step_s = estimate.time_range(
        first.block_means, estimate.FEW_DOUBT if varies else estimate.LEAST_DOUBT
    )
    n_held_out = (
        0 if run.held_out is None else len(run.held_out.labels) * len(run.networks_to_validate)
    )
    validation = estimate.FORWARD_SHARE * n_held_out / run.loader.batch_size  # in steps
    left = step_s.scaled(run.total_steps - run.step + (run.epochs - run.epoch) * validation)
    total, low, high = (run.elapsed_s + each for each in (left.mean, left.low, left.high))
    if total >= LEAST_TOTAL_S:
        yield Estimate(run.step, run.epoch, first.n_timed, total, low, high)


def _stop_if_requested(run: TrainState, request: int) -> None:
    """All is saved; where somebody asked to stop, now is when."""
    if request > SAVE:
        raise Stopped(request, run.step)


def _rollback(run: TrainState, fault: Diverged) -> Retry:
    """To the last checkpoint, from there at a lower rate. Raises `fault` where no retry is left."""
    if run.retries >= run.settings.retries:
        raise fault
    retries, factor = run.retries + 1, run.lr_factor * run.settings.retry_lr
    spent_s = run.elapsed_s
    try:
        notes = resume.resume(run).notes
    except UserError as lost:  # no checkpoint is sound any more
        raise Failure(f"{fault}, and there is nothing to go back to: {lost}") from lost
    run.start_clock(earlier_s=spent_s)  # time is not given back
    run.retries, run.lr_factor = retries, factor
    run.optimizer.zero_grad()  # what diverged is still in it
    run.divergence.reset()
    return Retry(fault.step, run.step, run.epoch, factor, "; ".join([str(fault), *notes]))


def _as_metrics(means: dict[str, float]) -> dict[str, float]:
    """Means of the losses under their metric names."""
    return {loss_name(name): value for name, value in means.items()}


def re_estimate_batch_norm(run: TrainState) -> None:
    """The averaged weights' own batch-norm statistics, if the recipe asks for them.

    Every process measures the same images, so that nothing depends on how many there are.
    """
    if run.ema is not None and run.norm_images is not None:
        with run.accelerator.autocast():
            batch_norm.re_estimate(run.ema.module, run.norm_images, run.accelerator.device)


def broadcast_buffers(run: TrainState) -> None:
    """Give every process rank 0's running statistics, of the net and of its average.

    Between two forwards each process has its own; what is measured must be what is kept.
    """
    for net in (run.model, run.ema.module) if run.ema is not None else (run.model,):
        broadcast(list(net.buffers()))


def validate(run: TrainState) -> dict[str, float]:
    """Measures of the final weights on the held-out part; of both with `train.validate_both`.

    Computed in the precision of the training: selection needs a ranking alone, and on a GPU float32
    without TF32 takes several times as long. Raises Stopped in the middle where somebody asked for
    it: the resumed run begins with it.
    """
    if run.held_out is None:
        return {}

    def look_up() -> None:
        if (
            run.stop_signal.code and run.accelerator.num_processes == 1
        ):  # several would have to agree
            resume.save(run)
            _stop_if_requested(run, run.stop_signal.code)

    metrics: dict[str, float] = {}
    for split, net in run.networks_to_validate.items():
        with run.accelerator.autocast():  # accelerate wraps `run.net`, and neither of these
            values = measure(net, run.held_out, run.accelerator, look_up)
        metrics |= {measure_name(name, split): value for name, value in values.items()}
    return metrics


def _record_if_best(run: TrainState, metrics: dict[str, float]) -> bool:
    """Keep this epoch's weights if it is the best so far; with nothing held out, always."""
    chosen_by = measure_name("top1", "val" if run.ema is None else "val_ema")
    is_best = run.held_out is None or metrics[chosen_by] > run.best.metrics.get(chosen_by, -1.0)
    if is_best:
        run.best = BestEpoch(run.epoch + 1, metrics)
        run.best_weights = checkpoint.copy_weights(run.final_weights)
    return is_best
