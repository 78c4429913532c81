"""Knowledge distillation from recipes. The names in `__all__` are the Python interface.

They are defined in `distill/api.py`, which is imported when one of them is first used: it imports
PyTorch, which takes seconds.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.api import (
        Failure,
        TrainedRun,
        UserError,
        evaluate,
        load_run,
        predict,
        train_student,
        train_teacher,
    )

__all__ = [
    "Failure",
    "TrainedRun",
    "UserError",
    "evaluate",
    "load_run",
    "predict",
    "train_student",
    "train_teacher",
]

if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from distill import api

        return getattr(api, name)
