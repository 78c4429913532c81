"""Build the loss terms of a recipe; find the feature maps that they read."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from distill.errors import UnsuitableRecipe
from distill.losses.ab import AB
from distill.losses.at import AT
from distill.losses.cc import CC
from distill.losses.crd import CRD
from distill.losses.ctkd import CTKD
from distill.losses.dist import DIST
from distill.losses.dkd import DKD
from distill.losses.fitnet import FitNet
from distill.losses.fsp import FSP
from distill.losses.ft import FT
from distill.losses.hard import Hard
from distill.losses.kd import KD
from distill.losses.logit_std import LogitStd
from distill.losses.mlkd import MLKD
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
from distill.losses.ttm import TTM
from distill.losses.vid import VID
from distill.losses.wkd import WKD
from distill.models.features import listed, tap_points
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
    "ctkd": CTKD,
    "mlkd": MLKD,
    "ttm": TTM,
    "wkd": WKD,
    "soft_mix": SoftMix,
    "fitnet": FitNet,
    "at": AT,
    "sp": SP,
    "nst": NST,
    "fsp": FSP,
    "ab": AB,
    "ft": FT,
    "pkt": PKT,
    "rkd": RKD,
    "cc": CC,
    "vid": VID,
    "crd": CRD,
    "reviewkd": ReviewKD,
    "simkd": SimKD,
}


def build_objective(recipe: Recipe, **facts: Any) -> Objective:
    """Build the objective of a recipe, with one loss object per term.

    A loss is constructed from its recipe keys. `facts` are further arguments, which a loss gets if
    its constructor accepts them: `student_shapes` and `teacher_shapes`, the shapes of the feature
    maps by name; `teacher_class_weights`, the rows [C, D] of the teacher's linear classifier or
    None; and `labels` [N] of the training images. Raises UnsuitableRecipe if a loss cannot
    be used with these images or maps.
    """
    return Objective(
        {name: _build_term(name, term, facts) for name, term in recipe.loss.terms().items()}
    )


def _build_term(name: str, term: Term, facts: dict[str, Any]) -> LossTerm:
    taken = facts.keys() & inspect.signature(LOSSES[name]).parameters
    try:
        loss = LOSSES[name](**arguments(term), **{fact: facts[fact] for fact in taken})
    except ValueError as fault:  # the loss cannot use these images or maps
        raise UnsuitableRecipe(f"loss.{name}: {fault}.\nType --set loss.{name}=false.") from fault
    return LossTerm(term.weight, loss, LossSchedule(**term.when.model_dump()), term.needs)


def required_taps(recipe: Recipe, role: Literal["student", "teacher"], net: nn.Module) -> list[str]:
    """Return the names of the feature maps that the recipe's loss terms read from a network.

    Raises UnsuitableRecipe, naming the maps that exist once, if the network lacks some of them.
    """
    points = tap_points(net)
    needed = [
        (f"loss.{name}.{key}", tap)
        for name, term in recipe.loss.terms().items()
        for key, tap in taps(term, role)
    ]
    faults = [
        f'{key}: "{tap}" is not a feature map of the {role}'
        for key, tap in needed
        if tap not in points
    ]
    if faults:
        allowed = f"; allowed: {listed(points) or 'none'}"
        raise UnsuitableRecipe("\n".join(faults) + allowed)
    return list(dict.fromkeys(tap for _, tap in needed))
