"""SimKD: copy the teacher's classifier into the student.

Chen et al., CVPR 2022, arXiv 2203.14001. The projector that maps the student's features to the
classifier's input is in `students/resnet.py`; the loss is in `distill/losses/simkd.py`.
"""

from typing import Any

from torch import nn

from distill.errors import UnsuitableRecipe
from students.resnet import ResNet


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
    found = inner.get_classifier() if hasattr(inner, "get_classifier") else inner.head
    return found if isinstance(found, nn.Module) else None
