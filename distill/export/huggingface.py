"""Export safetensors, config and model card in the layout of the Hugging Face hub and timm.

`distill/export/timm_registration.py` registers the students and the wide residual networks with
timm. A teacher from timm is exported under its name in timm, with its mean and std in the config.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from distill.components.build_network import network_table
from distill.data.image_set import CHANNELS
from distill.errors import UserError
from distill.export import model_card, timm_registration
from distill.export.finished_run import FinishedRun, PredictFn
from distill.models import checkpoint
from distill.runs.run_folder import write_json, write_text
from networks.network_catalogue import FIXED
from networks.user_code import OwnNetwork
from students.resnet import ResNet
from teachers.timm_from_scratch import TimmClassifier
from teachers.wrn import WideResNet

IS_FLOAT = True
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
# Mean and std in the config of a network that normalises its input itself.
INSIDE = {"mean": [0.0] * CHANNELS, "std": [1.0] * CHANNELS}


def write(finished: FinishedRun, folder: Path) -> None:
    """Write weights, config and model card into `folder`."""
    net = finished.net if needs_registration(finished.net) else finished.net.net
    assert isinstance(net, nn.Module)
    checkpoint.save_weights(folder / WEIGHTS, checkpoint.copy_weights(net))
    write_json(folder / CONFIG, config(finished))
    write_text(
        folder / CARD, model_card.generate(finished, needs_import=needs_registration(finished.net))
    )


def read(folder: Path) -> PredictFn:
    """Load the network through timm; return its predict function.

    It normalises the images with the config's mean and std first, as timm's transforms do.
    """
    net = load(folder)
    pretrained: Any = net.pretrained_cfg
    mean, std = (torch.tensor(pretrained[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = net((images - mean) / std)
        return logits

    return predict


def load(folder: Path) -> nn.Module:
    """Load the folder's network through timm, in eval mode."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def needs_registration(net: nn.Module) -> bool:
    """Whether a network is this project's own, which must be registered with timm."""
    return not isinstance(net, TimmClassifier)


def config(finished: FinishedRun) -> dict[str, Any]:
    """Return the config from which timm builds the network."""
    architecture, arguments = _architecture(finished)
    return {
        "architecture": architecture,
        "num_classes": len(finished.class_names),
        "label_names": finished.class_names,
        "model_args": arguments,
        "pretrained_cfg": _source(finished.net)
        | {
            "input_size": [CHANNELS, finished.image_size, finished.image_size],
            "num_classes": len(finished.class_names),
            "crop_pct": 1.0,
            "custom_load": False,
            "license": "mit",
        },
    }


def _architecture(finished: FinishedRun) -> tuple[str, dict[str, Any]]:
    """Return the network's name in timm, and the arguments from which timm builds it."""
    recipe, net = finished.recipe, finished.net
    if isinstance(net, ResNet):
        rates = network_table(recipe, finished.role).rates()
        del rates["zero_gamma"]  # of initial weights only
        return "understudy_resnet", timm_registration.resnet_arguments(net.design, **rates)
    described = network_table(recipe, finished.role)
    if isinstance(net, OwnNetwork):
        raise UserError(
            f"--format safetensors: timm cannot build {described.network}, a network of your own "
            "code.\nGive another --format: onnx, torch-export."
        )
    if isinstance(net, WideResNet):
        return "understudy_wrn", {"depth": net.depth, "widen": net.widen, "dropout": net.dropout}
    if described.network in FIXED:
        return "understudy_network", {"network": described.network}
    return described.network.removeprefix("timm/"), {}


def _source(net: nn.Module) -> dict[str, Any]:
    """Return the part of timm's `pretrained_cfg` that depends on the network.

    This is the normalisation, and the names of the layers that timm replaces if the number of
    classes or input channels changes.
    """
    if isinstance(net, ResNet):
        return INSIDE | {"first_conv": "stem.0", "classifier": "head"}
    if isinstance(net, WideResNet):
        return INSIDE | {"first_conv": "stem", "classifier": "head"}
    if not isinstance(net, TimmClassifier):
        return INSIDE | {"first_conv": "stem.0", "classifier": "head"}
    network: Any = net.net
    plain = asdict(PretrainedCfg()) | network.pretrained_cfg
    layers = {k: plain[k] for k in ("first_conv", "classifier", "fixed_input_size")}
    normalise: Any = net.normalize
    buffers = {"mean": normalise.mean, "std": normalise.std}
    return layers | {name: buffer.flatten().tolist() for name, buffer in buffers.items()}
