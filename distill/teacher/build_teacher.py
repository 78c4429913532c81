"""Build a teacher, live or cached: one frozen network, an ensemble, or one network per view."""

from collections.abc import Callable, Sequence
from math import fsum

import torch
from accelerate import Accelerator
from torch import nn

from distill.components.build_loss_terms import required_taps
from distill.components.build_network import to_device
from distill.data.loader import Loader
from distill.recipe import recipe_variants, recipes, schema
from distill.recipe.recipes import Recipe
from distill.teacher import fold_batch_norm
from distill.teacher.teacher import (
    FrozenTeacher,
    LiveTeacher,
    OneTeacherPerView,
    Teacher,
)
from distill.teacher.view_cache import CachedTeacher, ViewOrigin
from teachers.ensemble import Ensemble


def combine_teachers(recipe: Recipe, nets: Sequence[nn.Module]) -> nn.Module:
    """Combine trained networks into one that returns the mean of their outputs.

    The recipe's `teacher.weights` weight the mean; with `teacher.mirror` it includes the outputs
    for the mirrored images. With `teacher.draw = "one"` the result is the same mean: it is used to
    measure the teacher's accuracy, but training queries one of the networks for each view.
    """
    wanted = recipe.teacher or schema.Teacher()
    if len(nets) == 1 and not wanted.mirror:
        return nets[0]
    return Ensemble(nets, wanted.weights if len(nets) > 1 else (), mirror=wanted.mirror)


def combination_identity(recipe: Recipe) -> dict[str, str]:
    """Return the settings that change a combined teacher's logits, `mirror` and normalised
    `weights`; empty for an equally weighted mean without mirroring.
    """
    wanted = recipe.teacher or schema.Teacher()
    mirror = {"mirror": "true"} if wanted.mirror else {}
    if len(set(wanted.weights)) < 2:
        return mirror
    parts = [weight / max(wanted.weights) for weight in wanted.weights]
    return mirror | {"weights": " ".join(f"{part / fsum(parts):.9g}" for part in parts)}


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_live_teacher(
    recipe: Recipe, frozen: FrozenTeacher, batches: Loader, accelerator: Accelerator
) -> LiveTeacher | OneTeacherPerView:
    """Return a live teacher: a copy of `frozen` prepared for fast inference.

    With `teacher.draw = "one"` the result queries one of the ensemble's networks for each view.
    `batches`: the loader of the training. `frozen` is not changed.
    """
    wanted = recipe.teacher or schema.Teacher()
    if wanted.draw == "one" and isinstance(frozen.net, Ensemble):
        lives = [
            _live_teacher(recipe, net, batches, accelerator) for net in frozen.net.single_teachers()
        ]
        weights = wanted.weights or [1.0] * len(lives)
        return OneTeacherPerView(lives, weights, recipe.data.seed)
    return _live_teacher(recipe, frozen.net, batches, accelerator)


def _live_teacher(
    recipe: Recipe, net: nn.Module, batches: Loader, accelerator: Accelerator
) -> LiveTeacher:
    taps = tuple(required_taps(recipe, "teacher", net))
    ready = fold_batch_norm.prepare_for_inference(
        net, batches.size, AUTOCAST.get(accelerator.mixed_precision)
    )
    return LiveTeacher(
        FrozenTeacher(to_device(ready, accelerator.device)), accelerator, batches, taps
    )


def build_teacher(
    recipe: Recipe, live: LiveTeacher | OneTeacherPerView | None, depends: dict[str, str]
) -> Teacher:
    """Build the teacher that training queries: cached if the recipe has [cache], else live.

    `live`: the teacher's networks; if None, the result has empty outputs. `depends`: what the
    cached logits depend on besides the view, such as images and precision, by name; `teacher` is
    the teachers' fingerprints joined by `+`.
    """
    if live is None:
        return Teacher()
    if recipe.cache is None:
        return Teacher(live)
    first, *_ = live.networks
    cached = CachedTeacher(
        live,
        first.loader,
        first.accelerator,
        depends | combination_identity(recipe),
        recipe=recipes.dumps(recipe),
        pairs="pair" in recipes.required_inputs(recipe),
        origin=_origin_of_views(recipe, live, depends)
        if isinstance(live, OneTeacherPerView)
        else None,
    )
    return Teacher(cached)


def _origin_of_views(
    recipe: Recipe, drawn: OneTeacherPerView, depends: dict[str, str]
) -> Callable[[int], ViewOrigin]:
    """Return a function that maps a view's number to what its logits depend on, for the cache key.

    These depend only on the teacher that is drawn for the view. A student with that teacher alone,
    or one that draws it for the same view, reads the same cache entry.
    """
    fingerprints = depends.get("teacher", "").split("+")
    alone = [recipe_variants.with_single_teacher(recipe, i) for i in range(len(drawn.networks))]
    origins = [
        ViewOrigin(depends | {"teacher": each} | combination_identity(one), recipes.dumps(one))
        for each, one in zip(fingerprints, alone, strict=True)
    ]
    return lambda view: origins[drawn.choice(view)]
