"""Random inputs of the loss terms, for the tests of the losses."""

import torch
from torch import Tensor

from distill.losses.objective import LossInputs, UnmixedTeacherLogits

B, C = 6, 5
STUDENT = {
    "stages.0": (3, 8, 8),
    "stages.1": (4, 4, 4),
    "stages.2": (6, 2, 2),
    "projector": (7, 2, 2),
    "maps": (6, 2, 2),
    "features": (6,),
}
TEACHER = {
    "stages.0": (4, 8, 8),
    "stages.1": (5, 4, 4),
    "stages.2": (7, 2, 2),
    "maps": (7, 2, 2),
    "features": (7,),
}
LABELS = torch.arange(20) % C


def loss_inputs(
    batch: int = B, dtype: torch.dtype = torch.float64, *, like_teacher: bool = False, seed: int = 0
) -> LossInputs:
    """Random inputs; `like_teacher`: the student's maps have the teacher's shapes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    shapes = TEACHER | {"projector": TEACHER["maps"]} if like_teacher else STUDENT
    return LossInputs(
        student=2 * normal(batch, C),
        targets=torch.eye(C, dtype=dtype)[torch.arange(batch) % C],
        teacher=3 * normal(batch, C),
        student_taps={name: normal(batch, *shape) for name, shape in shapes.items()},
        teacher_taps={name: normal(batch, *shape) for name, shape in TEACHER.items()},
        samples=torch.arange(batch),
        unmixed=UnmixedTeacherLogits(
            3 * normal(batch, C), 3 * normal(batch, C), normal(batch, 1).sigmoid()
        ),
    )
