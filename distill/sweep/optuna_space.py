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
from distill.sweep.sweep_schema import Space, Study, SweepFile, option_label, pairs

REDUCTION = 3  # of Hyperband: a third goes on (Li et al., JMLR 18, 2018, arXiv 1603.06560)


def distributions(file: SweepFile) -> dict[str, BaseDistribution]:
    """By name of the space; options are stored by their labels."""
    return {name: _distribution(space) for name, space in file.space.items()}


def draw_values(study: optuna.Study, known: FrozenTrial, file: SweepFile) -> dict[str, Any]:
    """What a trial might try: what is fixed already, the rest by the sampler. Nothing is kept.

    The sampler sees the trials of all of Hyperband's brackets.
    """
    every = distributions(file).items()
    drawn = {
        name: study.sampler.sample_independent(study, known, name, distribution)
        for name, distribution in every
        if name not in known.params
    }
    return {name: known.params[name] if name in known.params else drawn[name] for name, _ in every}


def store_values(trial: Trial, row: int, file: SweepFile, values: Mapping[str, Any]) -> None:
    """Writes down what a trial, a row of the storage, tries."""
    known = trial.storage.get_trial(row).params
    for name, each in distributions(file).items():
        if name not in known:
            internal = each.to_internal_repr(values[name])
            trial.storage.set_trial_param(row, name, internal, each)


def sampler(study: Study, number: int) -> BaseSampler:
    """Of one trial: its draws depend on the sweep's seed and the trial's number.

    TPE: Bergstra et al., NeurIPS 2011; trials that still run count as bad, so that workers do not
    all try the same place.
    """
    digest = hashlib.sha256(f"{study.seed} {number}".encode()).digest()
    seed = int.from_bytes(digest[:4])
    if study.sampler == "random":
        return RandomSampler(seed=seed)
    with catch_warnings():
        simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(n_startup_trials=study.startup_trials, constant_liar=True, seed=seed)


def pruner(sweep: Sweep) -> BasePruner:
    """Who ends a trial early, by its value after each epoch."""
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
    known = [
        int(value)
        for name, space in sweep.file.space.items()
        for each in space.options or space.bounds
        for key, value in pairs(name, each)
        if key == "train.epochs"
    ]
    return max(known, default=sweep.base.recipe.train.epochs or 1)


def _distribution(space: Space) -> BaseDistribution:
    if space.log:
        return FloatDistribution(*space.log, log=True)
    if space.uniform:
        return FloatDistribution(*space.uniform)
    if space.integer:
        return IntDistribution(*space.integer)
    return CategoricalDistribution([option_label(option) for option in space.options])
