"""Compute the learning rate of a step, and the schedule of a recipe, without torch."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from distill.recipe.schema import Recipe

Schedule = Literal["cosine", "linear", "constant", "step", "milestones", "one_cycle"]

# The defaults of torch's OneCycleLR: the fraction of the training in which the learning rate
# increases, and the first and last learning rates relative to the peak.
RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 25e4


def of_recipe(recipe: Recipe, total: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the optimizer step, 0..total-1.

    The recipe's epochs are converted to steps. If the recipe has a budget in minutes, the warm-up
    is limited to a quarter of the steps: the validation of the recipe cannot compare it with the
    number of steps, which is measured later.
    """
    longest = total if recipe.train.minutes is None else total // 4
    return partial(
        lr_at,
        total=total,
        warmup=min(round(recipe.optim.warmup_epochs * steps_per_epoch), longest),
        peak=recipe.optim.lr,
        schedule=recipe.optim.schedule,
        min_lr=recipe.optim.min_lr,
        steps_per_epoch=steps_per_epoch,
        step_epochs=recipe.optim.step_epochs,
        milestones=recipe.optim.milestones,
        gamma=recipe.optim.gamma,
    )


def lr_at(
    step: int,
    *,
    total: int,
    warmup: int,
    peak: float,
    schedule: Schedule,
    min_lr: float = 0.0,
    steps_per_epoch: int = 1,
    step_epochs: int = 10,
    milestones: Sequence[int] = (),
    gamma: float = 0.9,
) -> float:
    """Return the learning rate of optimizer step `step` in 0..total-1.

    Over the first `warmup` steps it increases linearly from peak / warmup to peak; `min_lr` has no
    effect there. Then it follows `schedule` to `min_lr`, in [0, peak), which it would reach at step
    `total`, the first one that is not taken:

    - `cosine`: half a cosine (Loshchilov & Hutter, ICLR 2017, arXiv 1608.03983, eq. 5 with eta_min
      = min_lr);
    - `linear`: a straight line;
    - `constant`: the peak;
    - `step`: multiplied by `gamma` every `step_epochs` epochs of the training, at least `min_lr`;
    - `milestones`: multiplied by `gamma` after each of so many epochs of the training, so at the
      begin of epoch m + 1, counted from 1, for each milestone m; at least `min_lr`. Like torch's
      MultiStepLR, and RepDistiller's adjust_learning_rate;
    - `one_cycle` (Smith & Topin, arXiv 1708.07120, in torch's version): `warmup` is ignored; half a
      cosine from peak / 25 to peak over the first 30 % of the training, and half a cosine from
      there to the larger of peak / 250,000 and `min_lr` at the last step.
    """
    if schedule == "one_cycle":
        return _one_cycle(step, total, peak, min_lr)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    epoch = step // steps_per_epoch
    if schedule == "step":
        return max(peak * gamma ** (epoch // step_epochs), min_lr)
    if schedule == "milestones":
        return max(peak * gamma ** sum(epoch >= milestone for milestone in milestones), min_lr)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    factor = {"cosine": cosine, "linear": 1 - progress, "constant": 1.0}[schedule]
    return min_lr + (peak - min_lr) * factor


def _one_cycle(step: int, total: int, peak: float, min_lr: float) -> float:
    top = RISE * total - 1  # the step of the peak in torch's version; may be fractional
    if step <= top:
        return _cosine(peak * FIRST, peak, step / top)
    last = max(peak * LAST, min_lr)
    return _cosine(peak, last, (step - top) / max(1e-9, total - 1 - top))


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
