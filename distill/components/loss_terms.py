"""Build the loss of a recipe: one object per term, and the feature maps that the terms read."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from distill.errors import UnsuitableRecipe
from distill.losses.at import AT
from distill.losses.crd import CRD
from distill.losses.dist import DIST
from distill.losses.dkd import DKD
from distill.losses.fitnet import FitNet
from distill.losses.hard import Hard
from distill.losses.kd import KD
from distill.losses.logit_std import LogitStd
from distill.losses.mse import MSE
from distill.losses.multi_temperature import MultiTemperature
from distill.losses.nst import NST
from distill.losses.objective import LossFunction, LossSchedule, LossTerm, Objective
from distill.losses.pkt import PKT
from distill.losses.reviewkd import ReviewKD
from distill.losses.rkd import RKD
from distill.losses.simkd import SimKD
from distill.losses.soft_mix import SoftMix
from distill.losses.sp import SP
from distill.losses.vid import VID
from distill.models.features import tap_points
from distill.recipe.loss_schema import Term, arguments, taps
from distill.recipe.recipes import Recipe

LOSSES: dict[str, Callable[..., LossFunction]] = {
    "hard": Hard,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "logit_std": LogitStd,
    "mse": MSE,
    "multi_temperature": MultiTemperature,
    "soft_mix": SoftMix,
    "fitnet": FitNet,
    "at": AT,
    "sp": SP,
    "nst": NST,
    "pkt": PKT,
    "rkd": RKD,
    "vid": VID,
    "crd": CRD,
    "reviewkd": ReviewKD,
    "simkd": SimKD,
}


def build_objective(recipe: Recipe, **facts: Any) -> Objective:
    """One loss a term, its arguments the term's own keys and those of `facts` that it takes.

    `student_shapes`, `teacher_shapes`: of the maps asked for; `labels` [N]: of the training part.
    """
    return Objective(
        {name: _build_term(name, term, facts) for name, term in recipe.loss.terms().items()}
    )


def _build_term(name: str, term: Term, facts: dict[str, Any]) -> LossTerm:
    taken = facts.keys() & inspect.signature(LOSSES[name]).parameters
    try:
        loss = LOSSES[name](**arguments(term), **{fact: facts[fact] for fact in taken})
    except ValueError as fault:  # these images or these maps are not for this term
        raise UnsuitableRecipe(f"loss.{name}: {fault}.\nType --set loss.{name}=false.") from fault
    return LossTerm(term.weight, loss, LossSchedule(**term.when.model_dump()), term.needs)


def required_taps(
    recipe: Recipe, whose: Literal["student", "teacher"], net: nn.Module
) -> list[str]:
    """The maps that some term asks of a network. Raises Unfit where one is not there."""
    points = tap_points(net)
    asked = [
        (f"loss.{name}.{key}", tap)
        for name, term in recipe.loss.terms().items()
        for key, tap in taps(term, whose)
    ]
    faults = [
        f'{key}: "{tap}" names no map of the {whose}; allowed: {", ".join(points) or "none"}'
        for key, tap in asked
        if tap not in points
    ]
    if faults:
        raise UnsuitableRecipe("\n".join(faults))
    return list(dict.fromkeys(tap for _, tap in asked))
