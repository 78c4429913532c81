"""Build a network from the user's own code: `FILE.py:NAME` or `package.module:NAME`.

Code is run only if the user allows it: the file or module is typed on the command line (`--set
student.network=…`) or named in the environment variable UNDERSTUDY_CODE. A file or a run folder
alone, which may come from somebody else, runs no code.
"""

import hashlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.files import regular_file
from networks.network_catalogue import split_own
from students.normalize_images import Normalize

VARIABLE = "UNDERSTUDY_CODE"  # files and modules whose code may be run, separated as PATH is
LARGEST = 1 << 22  # bytes of a source file
N_CLASSES = ("classes", "num_classes", "n_classes")  # names of the argument, the first that exists

_typed: set[str] = set()  # files and modules typed on the command line


class CodeNotAllowed(UserError):
    """The user has not allowed a network's code to be run."""


class Source(NamedTuple):
    """The file with the code of a network, and its content."""

    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        """The content's sha256, hex."""
        return hashlib.sha256(self.content).hexdigest()


class OwnNetwork(nn.Module):
    """A network of the user's code: images [B, 3, H, W] in [0, 1] to logits [B, classes].

    With `normalize` it receives normalised images. Every submodule is a tap, by its dotted name;
    taps are copied, since the code may change a module's output in place.
    """

    copies_taps = True

    def __init__(self, net: nn.Module, normalize: bool) -> None:
        super().__init__()
        self.normalize = Normalize() if normalize else nn.Identity()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalize(images))
        return logits

    @property
    def tap_points(self) -> dict[str, nn.Module]:
        """Return all submodules by their dotted names."""
        return {name: module for name, module in self.net.named_modules() if name}


def allow(network: str) -> None:
    """Allow the code of `FILE.py:NAME` or `package.module:NAME`, which the user typed."""
    _typed.add(_file_or_module(split_own(network)[0]))


def source_of(network: str) -> Source:
    """Read the source file of a network.

    Raises UserError if its code is not allowed, or the file is missing or unreadable.
    """
    code, _ = split_own(network)
    _check_allowed(code)
    path = Path(code) if code.endswith(".py") else _module_file(code)
    try:
        return Source(path, regular_file.content_of(path, LARGEST))
    except FileNotFoundError as fault:
        raise UserError(
            f"{path.absolute()} does not exist; the network {network} is defined there.\n"
            "Put the file there, or type the command in the folder where it is."
        ) from fault
    except (OSError, regular_file.InvalidFile) as fault:
        raise UserError(f"{path} cannot be read as Python code: {fault}.") from fault


def build(
    network: str,
    arguments: Mapping[str, Any],
    *,
    normalize: bool,
    classes: int,
    image_size: int = 32,
    sha256: str | None = None,
) -> OwnNetwork:
    """Build a network by calling its code, and check it on two images.

    The callable NAME, a class or a function that the code itself defines, receives `arguments` and
    the number of classes, as `classes`, `num_classes` or `n_classes`, and returns a module.
    `sha256`: what the source file must have. Raises UserError if the code is not allowed, is
    another one, or fails, and if the module does not map images [2, 3, H, W] in [0, 1] to finite
    logits [2, classes] or has no parameter.
    """
    source = source_of(network)
    if sha256 is not None and source.sha256 != sha256:
        raise UserError(
            f"{source.path} is not the code that the run began with: its sha256 is "
            f"{source.sha256[:16]}…, not {sha256[:16]}….\n"
            "Restore that file, or train again in another --out."
        )
    name = split_own(network)[1]
    make = _defined(_execute(source.path, source.content), name, source.path)
    net = _called(make, network, dict(arguments), classes)
    wrapped = OwnNetwork(net, normalize)
    _check(wrapped, network, classes, image_size)
    return wrapped


def _file_or_module(code: str) -> str:
    return os.path.realpath(code) if code.endswith(".py") else code


def _check_allowed(code: str) -> None:
    variable = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    if _file_or_module(code) in _typed | set(map(_file_or_module, variable)):
        return
    raise CodeNotAllowed(
        f"the network is defined by the code of {code}, which would be run.\n"
        f"Read it; if you trust it, type {VARIABLE}={code} before the command."
    )


def _module_file(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as fault:
        raise UserError(f"the module {name} cannot be imported: {fault}.") from fault
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(
            f"there is no Python module {name}.\nInstall it, or give a file: nets.py:NAME."
        )
    return Path(spec.origin)


@cache
def _execute(path: Path, content: bytes) -> types.ModuleType:
    """Run the code once and return its module. Modules beside the file can be imported."""
    name = "understudy_own_" + hashlib.sha256(content).hexdigest()[:16]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except Exception as fault:
        raise UserError(f"{path} cannot be run: {type(fault).__name__}: {fault}.") from fault
    return module


def _defined(module: types.ModuleType, name: str, path: Path) -> Callable[..., Any]:
    """Return the class or function that the code itself defines under this name.

    Names that the code imports are refused: the user allowed the file, but somebody else may have
    chosen the name and the arguments. Raises UserError.
    """
    own = {key: value for key, value in vars(module).items() if _is_defined_in(module, value)}
    if name in own:
        make: Callable[..., Any] = own[name]
        return make
    imported = ": the file only imports that name; it must define the network itself" * (
        callable(vars(module).get(name))
    )
    public = [key for key in own if not key.startswith("_")][:10]
    listed = f"; it has {', '.join(public)}" if public else ""
    raise UserError(f"{path} has no class or function {name}{imported}{listed}.")


def _is_defined_in(module: types.ModuleType, value: object) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _called(
    make: Callable[..., Any], network: str, arguments: dict[str, Any], classes: int
) -> nn.Module:
    parameters = inspect.signature(make).parameters
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [name for name in N_CLASSES if name in parameters]
    if accepts_any:  # a name that the signature has comes first
        names.append(N_CLASSES[0])
    if not names:
        raise UserError(
            f"{network} takes no number of classes: none of its arguments is called "
            f"{', '.join(N_CLASSES)}."
        )
    try:
        net = make(**{names[0]: classes} | arguments)
    except Exception as fault:
        raise UserError(
            f"{network} cannot be built: {type(fault).__name__}: {fault}.\n"
            f"It was called with {names[0]}={classes}"
            + "".join(f", {key}={value!r}" for key, value in arguments.items())
            + "."
        ) from fault
    if not isinstance(net, nn.Module):
        raise UserError(f"{network} returned {type(net).__name__} instead of a torch.nn.Module.")
    return net


@torch.no_grad()
def _check(net: OwnNetwork, network: str, classes: int, image_size: int) -> None:
    if not any(True for _ in net.parameters()):
        raise UserError(f"{network} has no parameters, so it cannot be trained.")
    images = torch.full((2, 3, image_size, image_size), 0.5)
    images = images.to(next(net.parameters()).device)  # "meta" if only its cost is wanted
    was_training = net.training
    try:
        logits = net.eval()(images)
    except Exception as fault:
        raise UserError(
            f"{network} does not take images [B, 3, {image_size}, {image_size}]: "
            f"{type(fault).__name__}: {fault}."
        ) from fault
    net.train(was_training)
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{network} gave {found} for two images instead of logits [2, {classes}].")
    if not logits.is_meta and not logits.isfinite().all():
        raise UserError(f"{network} gave logits that are not finite for two grey images.")
