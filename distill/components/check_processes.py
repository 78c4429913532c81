"""Check that the processes of a command can start, have the same inputs and are still connected."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import distributed

from distill.errors import RaisedByAll, UserError
from distill.format import join_shortened

# Parts of the error messages by which gloo and NCCL report that another process is lost. Gloo
# raises a bare RuntimeError, and the messages of its transports do not contain "gloo".
OF_ANOTHER = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Application timeout caused pair closure",
    "Socket closed",
    "Socket unexpectedly closed",
    "Connect timeout",
    "Read timeout",
    "Write timeout",
)
# Environment variables by which a launcher describes a command's processes and devices.
OF_LAUNCHERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OF_ACCELERATE = "ACCELERATE_"
DIGITS = 12  # of a fingerprint in a message


def is_lost_process(error: Exception) -> bool:
    """Whether a RuntimeError reports that another process ended or hangs."""
    return isinstance(error, distributed.DistError) or any(
        text in str(error) for text in OF_ANOTHER
    )


@contextmanager
def explain_launcher_variables() -> Iterator[None]:
    """Turn an error of accelerate into a UserError that names the launcher's variables.

    An error without such variables, full memory and a lost process are raised unchanged.
    """
    found = {  # before accelerate sets others
        name: value
        for name, value in os.environ.items()
        if name in OF_LAUNCHERS or name.startswith(OF_ACCELERATE)
    }
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, ImportError, LookupError, AssertionError) as fault:
        if not found or is_lost_process(fault):
            raise
        listed = " ".join(f"{name}={value}" for name, value in sorted(found.items()))
        raise UserError(
            f"no processes or device can be set up with the environment variables {listed}: "
            f"{str(fault).splitlines()[0] if str(fault) else type(fault).__name__}\n"
            f"Remove those that are not meant: unset {' '.join(sorted(found))}"
        ) from fault


def check_same_inputs(
    accelerator: Accelerator, fingerprints: Callable[[], Mapping[str, str]]
) -> None:
    """Raise RaisedByAll if the inputs of the processes differ; called by all processes.

    `fingerprints` returns those of this process's inputs by name, with the same names on all
    processes. It is not called if there is only one process.
    """
    if accelerator.num_processes == 1:
        return
    found: list[Mapping[str, str]] = gather_object([dict(fingerprints())])
    differing = [
        f"  {name}: {_values_by_process([each[name] for each in found])}"
        for name in found[0]
        if len({each[name] for each in found}) > 1
    ]
    if differing:
        raise RaisedByAll(
            "\n".join(["the processes have different inputs:", *differing])
            + "\nGive all processes the same files, such as those of a folder that their machines "
            "share."
        )


def _values_by_process(values: list[str]) -> str:
    """List different fingerprints with the numbers of their processes, for a message."""
    parts = []
    for value in dict.fromkeys(values):
        ranks = [str(rank) for rank, each in enumerate(values) if each == value]
        noun = "process" if len(ranks) == 1 else "processes"
        parts.append(f"{value[:DIGITS] or 'none'} in {noun} {join_shortened(ranks)}")
    return "; ".join(parts)
