"""SimKD: put the teacher's classifier on top of the student.

Chen et al., CVPR 2022, arXiv 2203.14001. What carries the student's maps to it is the student's own
(`students/resnet.py`, the projector); what is learnt is `distill/losses/simkd.py`.
"""

from typing import Any

from torch import nn

from distill.errors import UnsuitableRecipe
from students.resnet import ResNet


def reuse_classifier(student: nn.Module, teacher: nn.Module) -> None:
    """The teacher's linear layer becomes the student's, and is not trained.

    Raises Unfit where it does not fit.
    """
    ours, theirs = student.get_submodule("head"), _find_classifier(teacher)
    if not isinstance(ours, nn.Linear) or not isinstance(theirs, nn.Linear):
        raise UnsuitableRecipe(
            "loss.simkd reuses a linear classifier, and this teacher has none.\n"
            "Type --set loss.simkd=false, or give it a teacher whose last layer is linear."
        )
    if ours.weight.shape != theirs.weight.shape:
        width, pool = theirs.in_features, "global"
        if isinstance(teacher, ResNet):  # each channel may be several features
            width, pool = teacher.design.channels[-1], str(teacher.design.pool)
        raise UnsuitableRecipe(
            f"loss.simkd reuses the teacher's classifier, which reads {theirs.in_features} "
            f"features; the student's reads {ours.in_features}.\n"
            f"Type --set student.projector_width={width} --set student.pool={pool}."
        )
    ours.load_state_dict(theirs.state_dict())
    ours.requires_grad_(False)


def _find_classifier(teacher: nn.Module) -> nn.Module | None:
    """The layer that gives the logits."""
    inner: Any = getattr(teacher, "net", teacher)  # timm's networks, inside ours, know their own
    found = inner.get_classifier() if hasattr(inner, "get_classifier") else inner.head
    return found if isinstance(found, nn.Module) else None
