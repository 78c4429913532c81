"""Translate a sweep's search space into optuna's distributions, sampler and pruner."""

import hashlib
from collections.abc import Mapping
from typing import Any
from warnings import catch_warnings, simplefilter

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial

from distill.sweep.sweep_file import Sweep
from distill.sweep.sweep_schema import Space, Study, SweepFile, keys_and_values, option_label

# Hyperband: one in REDUCTION trials continues at each rung (Li et al., JMLR 18, 2018, arXiv
# 1603.06560).
REDUCTION = 3


def distributions(file: SweepFile) -> dict[str, BaseDistribution]:
    """Return optuna's distribution for each name in [space].

    Options of a grid or a choice become categories, represented by their labels.
    """
    return {name: _distribution(space) for name, space in file.space.items()}


def draw_values(study: optuna.Study, trial: FrozenTrial, file: SweepFile) -> dict[str, Any]:
    """Return a trial's values by name: the stored ones, the others drawn from the study's sampler.

    Nothing is stored. With Hyperband, the sampler uses the trials of all brackets.
    """
    return {
        name: trial.params[name]
        if name in trial.params
        else study.sampler.sample_independent(study, trial, name, distribution)
        for name, distribution in distributions(file).items()
    }


def store_values(trial: Trial, row: int, file: SweepFile, values: Mapping[str, Any]) -> None:
    """Store the values of a trial in its row of the storage; values stored earlier do not change.

    `row`: id of the row; `values`: by name in [space].
    """
    stored = trial.storage.get_trial(row).params
    for name, distribution in distributions(file).items():
        if name not in stored:
            internal = distribution.to_internal_repr(values[name])
            trial.storage.set_trial_param(row, name, internal, distribution)


def sampler(study: Study, number: int) -> BaseSampler:
    """Return the sampler of one trial, seeded by the sweep's seed and the trial's number.

    TPE: Bergstra et al., NeurIPS 2011. It treats running trials as bad ones (constant liar), so
    that workers do not all try similar values.
    """
    digest = hashlib.sha256(f"{study.seed} {number}".encode()).digest()
    seed = int.from_bytes(digest[:4])
    if study.sampler == "random":
        return RandomSampler(seed=seed)
    with catch_warnings():
        simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(n_startup_trials=study.startup_trials, constant_liar=True, seed=seed)


def pruner(sweep: Sweep) -> BasePruner:
    """Return optuna's pruner, which decides after each epoch whether to end a trial early."""
    study = sweep.file.study
    if study.pruner == "median":
        return MedianPruner(study.startup_trials, study.warmup_epochs)
    if study.pruner == "hyperband":
        return HyperbandPruner(
            min_resource=study.warmup_epochs,
            max_resource=_most_epochs(sweep),
            reduction_factor=REDUCTION,
        )
    return NopPruner()


def _most_epochs(sweep: Sweep) -> int:
    epochs = [
        int(value)
        for name, space in sweep.file.space.items()
        for option in space.options or space.bounds
        for key, value in keys_and_values(name, option)
        if key == "train.epochs"
    ]
    return max(epochs, default=sweep.base.recipe.train.epochs or 1)


def _distribution(space: Space) -> BaseDistribution:
    if space.log:
        return FloatDistribution(*space.log, log=True)
    if space.uniform:
        return FloatDistribution(*space.uniform)
    if space.integer:
        return IntDistribution(*space.integer)
    return CategoricalDistribution([option_label(option) for option in space.options])
