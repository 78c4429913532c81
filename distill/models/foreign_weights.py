"""Read weights that another program saved, and match them with a network of this project."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.files import regular_file
from distill.files.escape_text import visible
from distill.files.pickle_machine import text, type_name
from distill.files.regular_file import InvalidFile
from distill.models import safetensors_files, torch_files
from distill.models.safetensors_files import InvalidSafetensors
from distill.models.torch_files import InvalidTorchFile, RunsCode

LARGEST = 16 << 30  # bytes of a weights file
DEEPEST = 4  # levels of dictionaries around the weights
# Keys under which programs save a network's weights beside other things.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
MOST_LISTED = 6  # names in a message
LONGEST_NAME = 100  # characters of a name in a message
SAVE_ALONE = "Save its weights alone where you trained it: torch.save(net.state_dict(), FILE)."
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
            return without_prefixes(safetensors_files.loads(content))
        except InvalidSafetensors as fault:
            raise UserError(f"{path} is not a valid safetensors file: it {fault}.") from fault
    return without_prefixes(unwrapped(_unpickled(path, content), path))


def _unpickled(path: Path, content: bytes) -> Any:
    try:
        return torch_files.loads(content)
    except RunsCode as fault:
        raise UserError(
            f"{path} contains more than tensors, and reading it would run code: {fault.name}\n"
            f"{SAVE_ALONE}"
        ) from fault
    except InvalidTorchFile as fault:
        raise UserError(f"{path} cannot be read: it {fault}.\n{SAVE_ALONE}") from fault


def unwrapped(content: Any, path: Path) -> Weights:
    """Return the dictionary of tensors in what a file contains.

    Raises UserError if there is none, if several have a usual name, or several and none has one, or
    if a name occurs as text and as bytes.
    """
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            break
        tensors = {text(k): v for k, v in content.items() if isinstance(v, Tensor)}
        inner = {text(k): v for k, v in content.items() if isinstance(v, Mapping)}
        named = [key for key in WRAPPERS if key in inner and _has_tensors(inner[key])]
        repeated = [name for name, n in Counter(map(text, content)).items() if n > 1]
        if repeated or len(named) > 1:
            fault = (
                f"has names as text and as bytes: {_listed(repeated)}"
                if repeated
                else f"contains weights under {' and '.join(named)}: which to take is unknown"
            )
            raise UserError(f"{path} {fault}.\n{SAVE_ALONE}")
        if tensors and not named:
            return tensors
        if not named and len(inner) != 1:
            break
        content = inner[named[0] if named else next(iter(inner))]
    names = map(text, islice(content, MOST_LISTED)) if isinstance(content, Mapping) else ()
    found = ", ".join(names) or type_name(content)
    raise UserError(
        f"{path} contains no dictionary of tensors under a usual name ({', '.join(WRAPPERS)}); "
        f"found: {visible(found[:200])}.\n{SAVE_ALONE}"
    )


def without_prefixes(weights: Weights) -> Weights:
    """Remove the prefixes of wrappers, such as DataParallel's `module.`, that all names have."""
    for prefix in PREFIXES * 2:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def load_into(
    net: nn.Module,
    weights: Weights,
    what: str,
    translate: Callable[[str], str | None],
    original: Callable[[str], str] = lambda name: name,
) -> None:
    """Load weights under their own names or under those that `translate` returns.

    A network of timm or of the user's own code has its weights under `net.`. The network's own
    normalisation is not expected. `original` is the inverse of `translate`. Raises UserError that
    lists all missing, unknown and repeated names, all differing shapes and types, and the weights
    that are not finite, by the names that they have in the file; `what` says which file does not
    fit which network.
    """
    expected = net.state_dict()
    translations: list[tuple[Callable[[str], str], Callable[[str], str]]] = [
        (lambda name: name, lambda name: name),
        (lambda name: f"net.{name}", lambda name: name.removeprefix("net.")),
        (lambda name: translate(name) or name, original),
    ]
    # The names, own or translated, that the network expects most of.
    rename, back = max(
        translations, key=lambda pair: len(set(map(pair[0], weights)) & expected.keys())
    )
    if faults := _faults(weights, expected, rename, back):
        raise UserError("\n  ".join([f"{what}:", *faults]))
    ours = {rename(name): tensor for name, tensor in weights.items()}
    ours = {name: tensor.to(expected[name].dtype) for name, tensor in ours.items()}
    net.load_state_dict(expected | ours)


def _faults(
    weights: Weights,
    expected: Mapping[str, Tensor],
    rename: Callable[[str], str],
    back: Callable[[str], str],
) -> list[str]:
    """Return one line for each kind of difference, with the file's names.

    `rename` translates a name of the file to the network's, `back` one of the network's to the
    file's.
    """
    names = defaultdict[str, list[str]](list)  # of the file, by that of the network
    for name in weights:
        names[rename(name)].append(name)
    own = {ours: theirs[-1] for ours, theirs in names.items()}
    lists = {
        "missing": [back(name) for name in expected if name not in own and _is_required(name)],
        "unknown": [name for ours, name in own.items() if ours not in expected],
        "twice, under two names": [
            " and ".join(theirs) for theirs in names.values() if len(theirs) > 1
        ],
        **_unequal_tensors(weights, expected, own),
    }
    return [f"{kind}: {_listed(names)}" for kind, names in lists.items() if names]


def _is_required(name: str) -> bool:
    """Whether a file must have the network's weight of this name."""
    return name not in NORMALISATION and not name.endswith("num_batches_tracked")


def _unequal_tensors(
    weights: Weights, expected: Mapping[str, Tensor], own: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return the weights whose shape, type or values the network cannot take, by kind of fault.

    `own`: the names in the file by those of the network.
    """
    pairs = [(own[name], weights[own[name]], expected[name]) for name in expected if name in own]
    shapes = [
        f"{name} {list(found.shape)} instead of {list(tensor.shape)}"
        for name, found, tensor in pairs
        if found.shape != tensor.shape
    ]
    types = [
        f"{name} {_dtype(found)} instead of {_dtype(tensor)}"
        for name, found, tensor in pairs
        if _kind(found) != _kind(tensor)
    ]
    infinite = [
        name
        for name, found, tensor in pairs
        if found.shape == tensor.shape and not _is_finite(found, tensor.dtype)
    ]
    return {
        "of another shape": shapes,
        "of another type": types,
        "not finite": infinite,
        "negative": _negative_variances(weights, expected, own),
    }


def _negative_variances(
    weights: Weights, expected: Mapping[str, Tensor], own: Mapping[str, str]
) -> list[str]:
    """Return the file's names of running variances with a negative number."""
    return [
        own[name]
        for name, tensor in expected.items()
        if name in own
        and name.endswith("running_var")
        and _is_negative(weights[own[name]], tensor.shape)
    ]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(tensor: Tensor) -> str:
    """Return whether a tensor has floating-point numbers, integers or others."""
    if tensor.is_floating_point():
        return "float"
    return "other" if tensor.is_complex() or tensor.dtype == torch.bool else "integer"


def _is_finite(weights: Tensor, dtype: torch.dtype) -> bool:
    """Whether weights are finite in another type; those of float64 may overflow in float32."""
    if weights.is_floating_point() and dtype.is_floating_point:
        weights = weights.to(dtype)
    return bool(weights.isfinite().all())


def _is_negative(weights: Tensor, shape: torch.Size) -> bool:
    """Whether weights of this shape, which a variance needs, have a negative one."""
    if weights.shape != shape or weights.is_complex():
        return False
    return bool((weights < 0).any())


def _has_tensors(content: Any) -> bool:
    """Whether nested dictionaries, down to DEEPEST levels, have a tensor.

    They are searched level by level, each once: a file may refer to one many times.
    """
    level, searched = [content], set[int]()
    for _ in range(DEEPEST + 1):
        if any(isinstance(value, Tensor) for value in level):
            return True
        tables = {id(value): value for value in level if isinstance(value, Mapping)}
        new = [table for key, table in tables.items() if key not in searched]
        searched |= tables.keys()
        level = [value for table in new for value in table.values()]
    return False


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return visible(", ".join(name[:LONGEST_NAME] for name in names[:MOST_LISTED])) + more
