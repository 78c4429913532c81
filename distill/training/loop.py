"""Run the training step and the training loop, which yields events and prints nothing."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import torch
from accelerate.utils import broadcast
from torch import Tensor

from distill.data import rng
from distill.data.loader import Batch
from distill.data.task_progress import image_counter
from distill.errors import Failure, UserError
from distill.evaluation.predict_split import BATCH, evaluate_network
from distill.events import (
    IMAGES_PER_S,
    LR,
    TOTAL,
    TRAINING_STEPS,
    Epoch,
    Estimate,
    Event,
    Retry,
    Step,
    loss_name,
    measure_name,
)
from distill.losses.objective import LossInputs
from distill.models import checkpoint, epoch_weights, reestimate_batch_norm
from distill.models.features import ModelOutput
from distill.runs.run_folder import check_inside_folder
from distill.teacher.teacher import TeacherOutput
from distill.training import estimate_duration, optim, resume
from distill.training.divergence import Diverged, gradient_norm
from distill.training.signals import Request, Stopped
from distill.training.train_state import BestEpoch, TrainState

LEAST_TOTAL_S = 60.0  # shorter runs get no estimate of the total time


def step(state: TrainState, k: int) -> dict[str, Tensor]:
    """Take optimizer step k (from 0) on the global batch.

    The batch is split equally over processes and micro-batches. Returns every loss term,
    unweighted, and their weighted sum `total`, as scalars on the device, without waiting for it. On
    a CPU, raises Diverged before the weights change if loss or gradient are not finite.
    """
    means: dict[str, Tensor] = {}
    progress = k / state.total_steps
    needs = state.loss.needs(progress)
    for group in state.optimizer.param_groups:
        group["lr"] = optim.group_lr(group, state.lr(k) * state.lr_factor)
    micro_batches = state.loader.batches(k)
    for micro_step, (view, rows) in enumerate(micro_batches):
        with state.accelerator.accumulate(state.model_ddp, state.loss_ddp):
            batch = state.loader.batch(view, rows)  # augmented and mixed
            teacher = state.teacher(batch, needs)  # the same images as the student, no gradient
            _seed_dropout(state, k, micro_step)
            student = state.model_ddp(batch.images)
            losses = state.loss_ddp(loss_inputs(batch, student, teacher), progress)
            state.accelerator.backward(losses[TOTAL])
            state.loss.clear_inactive_grads(progress)
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / len(micro_batches)
            if state.accelerator.sync_gradients:
                state.divergence.record(k + 1, means[TOTAL], clip_gradient(state))
            state.optimizer.step()  # accelerate skips it for all but the last micro-batch
            state.optimizer.zero_grad()
    if state.ema is not None:
        state.ema.update(state.model, step=k + 2)  # timm's warm-up at t + 2 is (1 + t) / (10 + t)
    return means


def _seed_dropout(state: TrainState, k: int, micro_step: int) -> None:
    """Seed torch for one micro-batch, so that a resumed run draws the same dropout masks."""
    torch.manual_seed(rng.torch_seed(state.seed, k, micro_step, state.accelerator.process_index))


def loss_inputs(batch: Batch, student: ModelOutput, teacher: TeacherOutput) -> LossInputs:
    """Collect the inputs of the loss terms from a batch and the outputs of both networks."""
    return LossInputs(
        student=student.logits,
        targets=batch.targets,
        teacher=teacher.logits,
        student_taps=student.taps,
        teacher_taps=teacher.taps,
        samples=batch.rows.to(batch.targets.device),
        unmixed=teacher.unmixed,
    )


def clip_gradient(state: TrainState) -> Tensor | None:
    """Clip the gradient to the recipe's `optim.clip`, if set; return its norm before clipping.

    Returns None under a loss scaler: it skips a step whose gradient overflows, so that a non-finite
    norm is no divergence.
    """
    norm = None
    if state.clip is not None:
        norm = state.accelerator.clip_grad_norm_(state.parameters(), state.clip)
    if state.accelerator.scaler is not None:
        return None
    return gradient_norm(state.parameters()) if norm is None else norm


def train(state: TrainState) -> Iterator[Event]:
    """Train the remaining epochs: steps, validation, checkpoints.

    Yields Step, Estimate, Epoch and Retry events. Each is yielded before the state that it reports
    is saved, so that a resumed run neither repeats nor omits an event. Raises Diverged if loss or
    gradient are not finite and no retry is left; the diverged state is not saved. Raises Stopped on
    request, after saving.
    """
    state.start_clock()
    with state.stop_signal.defer():
        if state.step == 0:
            resume.save(state)  # a full disk raises an error now, not after the first epoch
        while state.epoch < state.epochs:
            try:
                yield from _epoch(state)
            except Diverged as error:
                yield _rollback(state, error)
                resume.save(state)  # with the number of retries
        _stop_if_requested(state, state.ranks.agree_now(state.stop_signal.request))


def _epoch(state: TrainState) -> Iterator[Event]:
    """Train to the end of the current epoch: steps, validation, and a checkpoint if one is due."""
    speed = yield from _steps(state)
    re_estimate_batch_norm(state)
    broadcast_buffers(state)
    measured = validate(state)
    is_best = _record_if_best(state, measured)
    state.epoch += 1
    _save_epoch_weights(state)
    losses = _as_metrics(state.epoch_losses.read(state.accelerator))
    metrics = losses | measured | speed
    yield Epoch(state.epoch, state.step, metrics, is_best, state.process_s, state.remaining_s)
    if state.epoch % state.settings.save_every == 0 or state.epoch == state.epochs:
        resume.save(state)


def _save_epoch_weights(state: TrainState) -> None:
    """Save the weights after this epoch if it is one of `state.epochs_to_save`.

    The averaged weights are saved if the run has an average. They are written before the checkpoint
    that includes the epoch, so that no epoch is missing in a resumed run. Raises OSError if they
    cannot be written, UserError if a folder of the run was replaced by a link.
    """
    if state.epoch in state.epochs_to_save and state.accelerator.is_main_process:
        check_inside_folder(state.folder)
        epoch_weights.save(state.folder, state.epoch, state.final_weights)


def _steps(state: TrainState) -> Generator[Step | Estimate, None, dict[str, float]]:
    """Take the remaining steps of the current epoch.

    Returns the metric `images_per_s` if no Step of the epoch has it, else nothing.
    """
    speed = _SpeedMeter()
    state.model_ddp.train()
    state.first_steps.restart()
    for k in range(state.step, state.end_of_epoch):
        losses = step(state, k)
        state.epoch_losses.add(losses)
        state.log_losses.add(losses)
        speed.n_images += state.loader.images_in(k)
        state.step = k + 1
        if state.step % state.settings.log_every == 0:
            state.divergence.raise_if_diverged()
            metrics = _as_metrics(state.log_losses.read(state.accelerator))
            metrics |= {LR: state.lr(k) * state.lr_factor} | speed.metrics()
            yield Step(state.step, state.epoch, metrics)
            speed = _SpeedMeter()
        if state.progress is not None:
            state.progress(TRAINING_STEPS, state.step, state.total_steps)
        if state.first_steps.count_step(state.accelerator.device):
            yield from _estimate(state)
        request = state.ranks(_request(state))
        if request is not Request.NONE or state.is_step_to_save:
            state.ranks.reset()
            resume.save(state)
            _stop_if_requested(state, request)
    state.divergence.raise_if_diverged()
    begin, every = state.epoch * state.loader.steps_per_epoch, state.settings.log_every
    is_logged = state.step // every > begin // every
    return {} if is_logged or not speed.n_images else speed.metrics()


@dataclass
class _SpeedMeter:
    """Counts the images of the steps since its construction."""

    n_images: int = 0
    began_at: float = field(default_factory=time.monotonic)

    def metrics(self) -> dict[str, float]:
        """Return the images per second, under the name of the metric."""
        return {IMAGES_PER_S: self.n_images / (time.monotonic() - self.began_at)}


def _request(state: TrainState) -> Request:
    """Return what this process requests after a step: the request of a signal, else SAVE if a
    checkpoint is due by the clock.
    """
    if state.stop_signal.request is not Request.NONE:
        return state.stop_signal.request
    return Request.SAVE if state.is_time_to_save else Request.NONE


def _estimate(state: TrainState) -> Iterator[Estimate]:
    """Estimate the total time from the first steps; yield nothing if it is below a minute.

    Validation is counted as forward passes. The range is wider if later steps may take a different
    time than the measured ones: if they compute other loss terms or read cached teacher logits.
    """
    first = state.first_steps
    varies = state.teacher.uses_cache or len(state.loss.change_points) > 1
    step_s = estimate_duration.time_range(
        first.block_means, estimate_duration.FEW_DOUBT if varies else estimate_duration.LEAST_DOUBT
    )
    n_held_out = 0 if state.held_out is None else len(state.held_out.labels)
    n_forwards = n_held_out * len(state.networks_to_validate)
    validation = estimate_duration.FORWARD_SHARE * n_forwards / state.loader.batch_size  # in steps
    left = step_s.scaled(state.total_steps - state.step + (state.epochs - state.epoch) * validation)
    total, low, high = (state.elapsed_s + rest_s for rest_s in (left.mean, left.low, left.high))
    if total >= LEAST_TOTAL_S:
        yield Estimate(state.step, state.epoch, first.n_timed, total, low, high)


def _stop_if_requested(state: TrainState, request: Request) -> None:
    """Raise Stopped if the request is to stop. Call it after the state is saved."""
    if request.stops:
        raise Stopped(request, state.step)


def _rollback(state: TrainState, error: Diverged) -> Retry:
    """Restore the last checkpoint and lower the learning rate.

    Raises `error` if no retry is left, Failure if no checkpoint can be restored.
    """
    if state.retries >= state.settings.retries:
        raise error
    retries, factor = state.retries + 1, state.lr_factor * state.settings.retry_lr
    spent_s = state.elapsed_s
    try:
        notes = resume.resume(state).notes
    except UserError as lost:  # every checkpoint is damaged
        raise Failure(f"{error}, and there is no checkpoint to return to: {lost}") from lost
    state.start_clock(earlier_s=spent_s)  # the time of the diverged steps counts
    state.retries, state.lr_factor = retries, factor
    state.optimizer.zero_grad()  # the gradients are not finite
    state.divergence.reset()
    return Retry(error.step, state.step, state.epoch, factor, "; ".join([str(error), *notes]))


def _as_metrics(means: dict[str, float]) -> dict[str, float]:
    """Return the mean losses with their metric names, such as `loss/kd`, as keys."""
    return {loss_name(name): value for name, value in means.items()}


def re_estimate_batch_norm(state: TrainState) -> None:
    """Re-estimate the batch-norm statistics of the averaged weights, if the recipe requests it.

    Every process uses all `state.norm_images`, so that the result does not depend on the number of
    processes.
    """
    if state.ema is not None and state.norm_images is not None:
        with state.accelerator.autocast():
            reestimate_batch_norm.recompute_statistics(
                state.ema.module, state.norm_images, state.accelerator.device
            )


def broadcast_buffers(state: TrainState) -> None:
    """Copy the batch-norm statistics of the network and of its average from rank 0 to all
    processes.

    During training the statistics differ between processes. Rank 0 saves its own, so validation
    must use them too.
    """
    for net in (state.model, state.ema.module) if state.ema is not None else (state.model,):
        broadcast(list(net.buffers()))


def validate(state: TrainState) -> dict[str, float]:
    """Return `top1`, `nll` and `ece` on the held-out images; empty if nothing is held out.

    Measures the averaged weights if the run has an average, and with `train.validate_both` the
    unaveraged ones too. Computed in the precision of the training: selecting an epoch needs only a
    ranking, and on a GPU float32 without TF32 takes several times as long. Raises Stopped if a stop
    is requested meanwhile; the resumed run then repeats this validation.
    """
    if state.held_out is None:
        return {}

    def stop_early() -> None:
        count_batch()
        request = state.stop_signal.request
        # Several processes would have to agree first; they stop after the validation.
        if request.stops and state.accelerator.num_processes == 1:
            resume.save(state)
            _stop_if_requested(state, request)

    metrics: dict[str, float] = {}
    n_images, per_batch = len(state.held_out.labels), BATCH * state.accelerator.num_processes
    for split, net in state.networks_to_validate.items():
        task = f"measuring {measure_name('top1', split)}"
        count_batch = image_counter(state.progress, task, n_images, per_batch)
        with state.accelerator.autocast():  # accelerate wraps `model_ddp`, but not these networks
            values = evaluate_network(net, state.held_out, state.accelerator, stop_early)
        metrics |= {measure_name(name, split): value for name, value in values.items()}
    return metrics


def _record_if_best(state: TrainState, metrics: dict[str, float]) -> bool:
    """Copy the weights if this epoch is the best so far, or if nothing is held out.

    Returns whether they were copied.
    """
    top1 = measure_name("top1", "val" if state.ema is None else "val_ema")
    is_best = state.held_out is None or metrics[top1] > state.best.metrics.get(top1, -1.0)
    if is_best:
        state.best = BestEpoch(state.epoch + 1, metrics)
        state.best_weights = checkpoint.copy_weights(state.final_weights)
    return is_best
