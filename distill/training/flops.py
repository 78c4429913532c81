"""Count the floating-point operations of a recipe's training in closed form.

A multiply-accumulate (MAC) is two operations. A training step costs three times a forward pass: the
forward pass itself, and about two more for the gradients of activations and weights (Kaplan et al.
2020, arXiv 2001.08361, section 2.1). A teacher costs one forward pass for each image whose logits
are not cached:

    FLOP = images x 3 x 2 x MACs + teacher images x 2 x MACs of the teacher

One teacher is assumed: the networks of an ensemble are not described in the recipe.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch

from distill.components.build_network import build_network, network_name
from distill.models import cost
from distill.recipe.loss_schema import TEACHERS, Term
from distill.recipe.recipes import Recipe
from distill.recipe.schema import Data, Train
from distill.runs.run_folder import Role

TRAINED = 6  # operations for each multiply-accumulate of a training image
FORWARD = 2  # operations for each multiply-accumulate of a forward pass


@dataclass(frozen=True)
class NetworkCost:
    """The number of parameters of a network, and its multiply-accumulates for one image."""

    name: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class ImageCounts:
    """The numbers of images that a training processes; an image counts once per epoch."""

    trained: int
    cached: int  # trained images whose teacher logits are read from the cache
    passes: float  # teacher's forward passes per trained image that is not cached; 0 without one
    validated: int  # forward passes on the held-out part

    @property
    def teacher_forwards(self) -> float:
        """The number of forward passes of the teacher."""
        return (self.trained - self.cached) * self.passes


def network_cost(recipe: Recipe, role: Role, n_classes: int) -> NetworkCost:
    """Return the cost of a recipe's network, without allocating its weights.

    `role`: whether to build the network of [teacher] or of [student]. Raises UserError if it cannot
    be built.
    """
    size = Data(size=recipe.data.size)
    tables = Recipe(
        data=size, teacher=recipe.teacher, student=recipe.student, train=Train(epochs=1)
    )
    return _count_network(tables, role, n_classes)


@cache  # most recipes share their networks
def _count_network(recipe: Recipe, role: Role, n_classes: int) -> NetworkCost:
    with torch.device("meta"):
        net = build_network(recipe, role, n_classes)
    name = network_name(recipe, role, n_classes)
    return NetworkCost(
        name, cost.count_parameters(net), cost.count_macs(net.eval(), recipe.data.image_size)
    )


def count_images(recipe: Recipe, n_images: int) -> ImageCounts | None:
    """Count the images that a whole training processes, given a train split of `n_images`.

    Held-out images are not trained on, nor is the last partial batch of an epoch, unless
    `train.drop_last` is false. With a cache, the teacher's logits are computed in the first
    `cache.views` epochs and read in all others. Returns None for a recipe with `train.minutes`,
    whose number of steps depends on the machine.
    """
    epochs = recipe.train.epochs
    if epochs is None:
        return None
    n_train, n_held_out = split_sizes(recipe, n_images)
    left_out = n_train % recipe.train.batch_size if recipe.train.drop_last else 0
    an_epoch = n_train - left_out
    views = (recipe.cache and recipe.cache.views) or epochs
    both = recipe.ema is not None and recipe.train.validate_both
    return ImageCounts(
        trained=epochs * an_epoch,
        cached=max(0, epochs - views) * an_epoch,
        passes=teacher_passes_per_image(recipe),
        validated=epochs * n_held_out * (2 if both else 1),
    )


def split_sizes(recipe: Recipe, n_images: int) -> tuple[int, int]:
    """Return the approximate numbers of training and held-out images.

    The exact numbers may differ slightly, because the split rounds separately for each class.
    """
    n_held_out = round(recipe.data.holdout * n_images)
    n_train = n_images - n_held_out
    return min(n_train, recipe.data.train_images or n_train), n_held_out


def teacher_passes_per_image(recipe: Recipe) -> float:
    """Return the mean number of teacher forward passes per training image, averaged over the
    training.

    One pass while a loss term that reads the teacher's outputs is active, and two more while a term
    is active that needs its logits of the two images before they are mixed. The cache is not
    considered.
    """
    terms = list(recipe.loss.terms().values())
    change_points = sorted({0.0, 1.0, *(at for t in terms for at in (t.when.begin, t.when.end))})
    return sum(
        (end - begin) * _teacher_passes([t for t in terms if t.when.begin <= begin < t.when.end])
        for begin, end in pairwise(change_points)
    )


def _teacher_passes(terms: list[Term]) -> int:
    needs = frozenset[str]().union(*(term.needs for term in terms))
    return bool(needs & (TEACHERS - {"pair"})) + 2 * ("pair" in needs)


def training_flop(images: ImageCounts, student: NetworkCost, teacher: NetworkCost | None) -> float:
    """Return the number of floating-point operations of a training, without validation."""
    teacher_flop = 0.0 if teacher is None else FORWARD * images.teacher_forwards * teacher.macs
    return TRAINED * images.trained * student.macs + teacher_flop
