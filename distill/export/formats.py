"""List the export formats, and import the modules of those that are requested."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from distill.errors import UserError
from distill.export.finished_run import FinishedRun, PredictFn


class Format(Protocol):
    """A module of this package that implements one export format."""

    IS_FLOAT: bool  # whether it computes in float32, so that its logits equal the run's

    def write(self, finished: FinishedRun, folder: Path) -> None:
        """Write the format's files into an existing folder.

        Raises UserError if the format does not support this run.
        """

    def read(self, folder: Path) -> PredictFn:
        """Load the network from the format's files alone; return its predict function."""


HAND_IN = "project1_model() and its state dict, strict"
USE = {  # what a recipient needs to know besides the files
    "project1": "images in [0, 1], normalised by mean (0.4914, 0.4822, 0.4465) and std (0.2471, "
    f"0.2435, 0.2616); {HAND_IN}",
    "safetensors": "its README.md says how timm loads it, with one more import and from any folder",
    "onnx": "input `images`, float32 [N, 3, {size}, {size}] in [0, 1]; output `logits`",
}
NAMES = ("project1", "safetensors", "onnx", "torch-export", "onnx-int8")


def load_formats(names: Sequence[str]) -> dict[str, Format]:
    """Import the modules of the formats `names`; return them by name.

    Raises UserError if a name is unknown or a package that a format needs is not installed.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UserError(
            f"--format {', '.join(unknown)}: unknown format; allowed: "
            f"{', '.join(NAMES)}.\n"
            "Type for example python cli.py export RUN --format onnx --out DIR."
        )
    return {name: _import(name) for name in dict.fromkeys(names)}


def with_normalisation(
    requested: dict[str, Format], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Format]:
    """Return the formats, with project1 for images in [0, 1] that are normalised by mean and std.

    Raises UserError if project1 is not among them: every other format takes images in [0, 1].
    """
    if "project1" not in requested:
        raise UserError(
            "--normalize is for --format project1, which was not requested; every other format "
            "takes images in [0, 1].\nRemove --normalize, or add --format project1."
        )
    from distill.export.project1 import ForNormalisation, Normalisation

    return requested | {"project1": ForNormalisation(Normalisation(mean, std))}


def use_of(name: str, facts: Mapping[str, Any]) -> str:
    """Return what a recipient needs to know of a format. `facts`: those of the export's report."""
    if name != "project1" or "mean" not in facts:
        return USE[name]
    from distill.export.project1 import Normalisation, input_text

    given = Normalisation(tuple(facts["mean"]), tuple(facts["std"]))
    return f"images{input_text(given)}; {HAND_IN}"


def _import(name: str) -> Format:
    with explain_missing_package(name):
        if name == "project1":
            from distill.export import project1

            return project1
        if name == "safetensors":
            from distill.export import huggingface

            return huggingface
        if name == "onnx":
            from distill.export import onnx_float

            return onnx_float
        if name == "torch-export":
            from distill.export import torch_export

            return torch_export
        from distill.export import onnx_int8

        return onnx_int8


@contextmanager
def explain_missing_package(name: str) -> Iterator[None]:
    """Turn the error on a missing package into a UserError with the command that installs it.

    `name`: the export format that needs the package.
    """
    try:
        yield
    except ModuleNotFoundError as fault:
        raise UserError(
            f"--format {name} needs the package {fault.name}, which is not installed.\n"
            "Type uv pip install -r pyproject.toml --extra export, or "
            "pip install onnx onnxruntime onnxscript."
        ) from fault
