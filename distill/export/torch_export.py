"""Export a `torch.export` program that runs without this project's code.

    model = torch.export.load("model.pt2").module()

The loaded model takes float32 images [B, 3, S, S] in [0, 1], for any B and the S of its run, and
returns logits [B, C].
"""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from distill.data.image_set import CHANNELS
from distill.export.finished_run import FinishedRun, PredictFn
from distill.runs.run_folder import write_bytes

IS_FLOAT = True
FILE = "model.pt2"


def write(finished: FinishedRun, folder: Path) -> None:
    """Write the program into `folder`; it contains no path of this machine."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter: deprecations
        program = torch.export.export(
            finished.net,
            (torch.zeros(2, CHANNELS, finished.image_size, finished.image_size),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # has paths of this machine
        torch.export.save(program, content)
    write_bytes(folder / FILE, content.getvalue())


def read(folder: Path) -> PredictFn:
    """Load the program with torch, without this project's code; return its predict function."""
    net = torch.export.load(folder / FILE).module()

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = net(images.contiguous())
        return logits

    return predict
