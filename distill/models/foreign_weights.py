"""Read weights that another program saved, and match them with a network of this project."""

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor, nn

from distill.errors import UserError
from distill.files import regular_file
from distill.files.escape_text import visible
from distill.files.regular_file import InvalidFile
from distill.models import out_of_memory

LARGEST = 16 << 30  # bytes of a weights file
PICKLED = (b"PK", b"\x80")  # the first bytes of what torch.save writes, today and before 1.6
DEEPEST = 4  # levels of dictionaries around the weights
# Keys under which programs save a network's weights beside other things, in order of preference.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
MOST_LISTED = 20  # names in a message
NORMALISATION = ("normalize.mean", "normalize.std")

Weights = dict[str, Tensor]


def read(path: Path) -> Weights:
    """Read the tensors of a .safetensors, .pt or .pth file, by name, without running its code.

    Wrappings are removed: dictionaries such as {"state_dict": …}, and prefixes that all names have,
    such as `module.`. Raises UserError if the file cannot be read or contains no weights.
    """
    try:
        content = regular_file.content_of(path, LARGEST)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.\nGive a .safetensors, .pt or .pth file.") from None
    except (OSError, InvalidFile) as fault:
        raise UserError(f"{path} cannot be read: {fault}.") from fault
    if path.suffix == ".safetensors":
        try:
            return without_prefixes(from_bytes(content))
        except (SafetensorError, KeyError) as fault:
            raise UserError(f"{path} is not a valid safetensors file: {fault}.") from fault
    return without_prefixes(unwrapped(_unpickled(path, content), path))


def _unpickled(path: Path, content: bytes) -> Any:
    if not content.startswith(PICKLED):
        raise UserError(f"{path} is not a file that torch.save wrote.")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        raise UserError(
            f"{path} contains more than tensors, and reading it would run code: "
            f"{visible(str(fault).splitlines()[0])}\n"
            "Save its weights alone where you trained it: torch.save(net.state_dict(), FILE)."
        ) from fault
    except Exception as fault:
        if out_of_memory.is_out_of_memory(fault):
            raise
        raise UserError(f"{path} is not a file that torch.save wrote.") from fault


def unwrapped(content: Any, path: Path) -> Weights:
    """Return the dictionary of tensors in what a file contains.

    Raises UserError if there is none, or more than one and none has a usual name.
    """
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            break
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = {str(k): v for k, v in content.items() if isinstance(v, Mapping)}
        named = [key for key in WRAPPERS if key in inner]
        if tensors and not named:
            return tensors
        if not named and len(inner) != 1:
            break
        content = inner[named[0] if named else next(iter(inner))]
    found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise UserError(
        f"{path} contains no dictionary of tensors under a usual name ({', '.join(WRAPPERS)}); "
        f"found: {visible(found[:200])}.\n"
        "Save its weights alone: torch.save(net.state_dict(), FILE)."
    )


def without_prefixes(weights: Weights) -> Weights:
    """Remove the prefixes of wrappers, such as DataParallel's `module.`, that all names have."""
    for prefix in PREFIXES * 2:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def load_into(
    net: nn.Module, weights: Weights, what: str, translate: Callable[[str], str | None]
) -> None:
    """Load weights under their own names or under those that `translate` returns.

    A network of timm or of the user's own code has its weights under `net.`. The network's own
    normalisation is not expected. Raises UserError that lists all missing and unknown names and
    all differing shapes; `what` names the file.
    """
    expected = net.state_dict()
    renamed = _best_names(weights, expected, translate)
    missing = [n for n in expected if n not in renamed and n not in NORMALISATION]
    counters = [name for name in missing if name.endswith("num_batches_tracked")]
    missing = [name for name in missing if name not in counters]
    unknown = [name for name in renamed if name not in expected]
    shapes = [
        f"{name} {list(renamed[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in renamed and renamed[name].shape != tensor.shape
    ]
    lists = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    if faults := [f"{kind}: {_listed(names)}" for kind, names in lists.items() if names]:
        raise UserError(
            f"{what} does not hold the weights of {type(net).__name__}:\n  " + "\n  ".join(faults)
        )
    ours = {name: tensor.to(expected[name].dtype) for name, tensor in renamed.items()}
    net.load_state_dict(expected | ours)


def _best_names(
    weights: Weights, expected: Mapping[str, Tensor], translate: Callable[[str], str | None]
) -> Weights:
    """Return the weights under the names, own or translated, that the network expects most of."""
    candidates = [
        weights,
        {f"net.{name}": tensor for name, tensor in weights.items()},
        {translate(name) or name: tensor for name, tensor in weights.items()},
    ]
    return max(candidates, key=lambda renamed: len(renamed.keys() & expected.keys()))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return visible(", ".join(names[:MOST_LISTED])) + more
