"""Find a teacher's linear classifier: its weights, for WKD-L; a copy in the student, for SimKD.

SimKD is Chen et al., CVPR 2022, arXiv 2203.14001. The projector that maps the student's features to
the classifier's input is in `students/resnet.py`; the losses are in `distill/losses/simkd.py` and
`wkd.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from distill.errors import UnsuitableRecipe
from students.resnet import ResNet
from teachers.ensemble import Ensemble


def reuse_classifier(student: nn.Module, teacher: nn.Module) -> None:
    """Copy the teacher's linear classifier into the student and freeze it there.

    Raises UnsuitableRecipe if the classifier is not linear or its shape is not the student's.
    """
    own, reused = student.get_submodule("head"), _find_classifier(teacher)
    if not isinstance(own, nn.Linear) or not isinstance(reused, nn.Linear):
        raise UnsuitableRecipe(
            "loss.simkd reuses a linear classifier, but this teacher has none.\n"
            "Type --set loss.simkd=false, or give it a teacher whose last layer is linear."
        )
    if own.weight.shape != reused.weight.shape:
        width, pool = reused.in_features, "global"
        if isinstance(teacher, ResNet):  # each channel may be several features
            width, pool = teacher.design.channels[-1], str(teacher.design.pool)
        raise UnsuitableRecipe(
            f"loss.simkd reuses the teacher's classifier, which reads {reused.in_features} "
            f"features; the student's reads {own.in_features}.\n"
            f"Type --set student.projector_width={width} --set student.pool={pool}."
        )
    own.load_state_dict(reused.state_dict())
    own.requires_grad_(False)


def _find_classifier(teacher: nn.Module) -> nn.Module | None:
    """Return the teacher's last layer, which computes the logits; None if there is none."""
    inner: Any = getattr(teacher, "net", teacher)  # a wrapped timm network has get_classifier()
    found = inner.get_classifier() if hasattr(inner, "get_classifier") else _head(inner)
    return found if isinstance(found, nn.Module) else None


def _head(net: nn.Module) -> nn.Module | None:
    """Return the submodule called `head`; None if there is none."""
    return getattr(net, "head", None)


def class_weights(teacher: nn.Module) -> Tensor | None:
    """Return the rows of the linear classifier, [C, D]; None if the last layer is not linear.

    Those of several teachers are normalised and concatenated, so that the cosine of two rows is the
    mean of the teachers' cosines.
    """
    nets = teacher.members if isinstance(teacher, Ensemble) else [teacher]
    heads = [_find_classifier(net) for net in nets]
    rows = [normalize(head.weight.float()) for head in heads if isinstance(head, nn.Linear)]
    return torch.cat(rows, 1).detach() if len(rows) == len(heads) else None
