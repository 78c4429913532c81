"""Write the results of a finished run: weights, metrics, predictions, mistakes."""

import io
import time
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.sources.image_set import ImageSet
from distill.errors import UserError
from distill.events import End, Start
from distill.models import checkpoint
from distill.recipe import recipes
from distill.recipe.recipes import Recipe
from distill.runs import saved_predictions
from distill.runs.run_folder import IS_TESTED, RunFolder, write_bytes, write_json

N_MISTAKES = 64  # the most confident ones, kept with their pixels
ROUNDING = 1e-3  # of the largest logit: what another device, or another number of processes, may do


def write_result(
    folder: RunFolder,
    recipe: Recipe,
    start: Start,
    end: End,
    data: dict[str, Any],
    teachers: str,
    *,
    is_tested: bool = True,
) -> None:
    """result.json, the last file of a run: its presence says that the run is finished.

    `is_tested`: whether `end` has the figures of the test split.
    `data`: `fingerprint` and `class_names` of the train split, `test_fingerprint`, `test_images`
    and `class_names_fingerprint`; `teachers`: the fingerprint of their weights.
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
            "test_fingerprint": data["test_fingerprint"],
            "test_images": data["test_images"],
            "class_names_fingerprint": data["class_names_fingerprint"],
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
        "weights": checkpoint.weights_fingerprint(folder.weights(start.role)),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if is_tested:
        result["evaluation"] = checkpoint.weights_fingerprint(folder.evaluation)
    else:
        result[IS_TESTED] = False
    write_json(folder.result_file, result)


def write_evaluation(
    folder: RunFolder,
    test: ImageSet,
    logits: Tensor,
    teacher_logits: Tensor | None,
    held_out: tuple[Tensor, Tensor] | None,
) -> None:
    """evaluation.npz: logits [N, C] and labels [N] in the split's order, the teacher's logits
    [N, C], and the most confident mistakes: indices [M] and pixels [M, 3, H, W]. Of the held-out
    part, where there is one, `val_logits` [V, C] and `val_labels` [V] in its order.
    """
    ours = logits.cpu()
    confidence, answer = ours.softmax(dim=-1).max(dim=-1)
    wrong = torch.nonzero(answer != torch.from_numpy(test.labels)).flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:N_MISTAKES].numpy()
    arrays = {
        "logits": ours.numpy(),
        "labels": test.labels,
        "mistakes": worst,
        "mistake_pixels": test.images[worst],
    }
    if teacher_logits is not None:
        arrays["teacher_logits"] = teacher_logits.cpu().numpy()
    if held_out is not None:
        arrays["val_logits"], arrays["val_labels"] = (each.cpu().numpy() for each in held_out)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(folder.evaluation, buffer.getvalue())


def read_evaluation(folder: RunFolder, logits: Tensor) -> dict[str, Tensor]:
    """The arrays of evaluation.npz, where the network's logits [N, C] today are those in it; none
    where they are not, or where the file is gone or damaged.

    So many numbers that agree say at once that the weights and the images are the same.
    """
    answers = None
    with suppress(UserError):
        answers = saved_predictions.read_run(folder)
    if answers is None:
        return {}
    known, today = torch.from_numpy(answers.logits), logits.cpu()
    if known.shape != today.shape:
        return {}
    kept = {
        name: torch.from_numpy(array) for name, array in vars(answers).items() if array is not None
    }
    is_same = (known - today).abs().max() <= ROUNDING * today.abs().max()
    return kept if is_same else {}
