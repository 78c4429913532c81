"""Export to ONNX in float32, for any batch size.

Written by torch's exporter through onnxscript and read back by onnxruntime. The network normalises
its input itself.
"""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from distill.data.image_set import CHANNELS
from distill.export.finished_run import FinishedRun, PredictFn
from distill.runs.run_folder import write_bytes

IS_FLOAT = True
FILE = "model.onnx"


def write(finished: FinishedRun, folder: Path) -> None:
    """Write the model, checked by `onnx.checker`; it contains no path of this machine."""
    model = to_onnx(finished.net, finished.image_size)
    onnx.checker.check_model(model, full_check=True)
    write_bytes(folder / FILE, model.SerializeToString(deterministic=True))


def read(folder: Path) -> PredictFn:
    """Load the model with onnxruntime on the CPU; return its predict function."""
    return session(folder / FILE)


def to_onnx(net: nn.Module, size: int) -> onnx.ModelProto:
    """Return the ONNX model of a network in eval mode, with batch norms folded into kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter: deprecations
        program = torch.onnx.export(
            net,
            (torch.zeros(2, CHANNELS, size, size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return strip_metadata(program.model_proto)


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the exporter's notes, which contain paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    for weights in graph.initializer:
        del weights.metadata_props[:]
    return model


def session(path: Path) -> PredictFn:
    """Return the predict function of an ONNX file, run by onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(images.numpy())
        (logits,) = runtime.run(["logits"], {"images": pixels})
        return torch.from_numpy(logits)

    return predict
