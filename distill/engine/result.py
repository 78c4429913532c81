"""What a finished run leaves: the weights to use, its figures, its predictions and its mistakes."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill import recipe as recipes
from distill.data.sources import ImageSet
from distill.engine import checkpoint
from distill.events import End, Start
from distill.recipe import Recipe
from distill.run_folder import RunFolder, write_json

N_MISTAKES = 64  # the most confident ones, kept with their pixels


def write_result(
    folder: RunFolder, recipe: Recipe, start: Start, end: End, data: dict[str, Any], teachers: str
) -> None:
    """result.json, the last file of a run: its presence says that the run is finished.

    `data`: fingerprint and class names; `teachers`: the fingerprint of their weights.
    """
    result = {
        "role": start.role,
        "recipe": start.recipe,
        "recipe_fingerprint": recipes.fingerprint(recipe),
        "network": start.network,
        "parameters": end.parameters,
        "class_names": data["class_names"],
        "data": {
            "source": start.data,
            "fingerprint": data["fingerprint"],
            "train_images": start.train_images,
            "val_images": start.val_images,
        },
        "teacher": {
            "runs": list(recipe.teacher.runs) if recipe.teacher and teachers else [],
            "fingerprint": teachers,
            "top1": start.teacher_top1,
        },
        "epoch": end.epoch,
        "epochs": start.epochs,
        "metrics": end.metrics,
        "elapsed_s": end.elapsed_s,
        "device": start.device,
        "precision": start.precision,
        "processes": start.processes,
        "weights": checkpoint.fingerprint(folder.weights(start.role)),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(folder.result_file, result)


def write_evaluation(
    folder: RunFolder, test: ImageSet, logits: Tensor, teacher_logits: Tensor | None
) -> None:
    """evaluation.npz: logits [N, C] and labels [N] in the split's order, the teacher's logits
    [N, C], and the most confident mistakes: indices [M] and pixels [M, 3, H, W].
    """
    predictions = logits.cpu()
    confidence, answer = predictions.softmax(dim=-1).max(dim=-1)
    wrong = torch.nonzero(answer != torch.from_numpy(test.labels)).flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:N_MISTAKES].numpy()
    arrays = {
        "logits": predictions.numpy(),
        "labels": test.labels,
        "mistakes": worst,
        "mistake_pixels": test.images[worst],
    }
    if teacher_logits is not None:
        arrays["teacher_logits"] = teacher_logits.cpu().numpy()
    new = folder.evaluation.with_name(".evaluation.new.npz")
    np.savez_compressed(new, **arrays)
    new.replace(folder.evaluation)
