"""Write the results of a finished run: metrics, predictions, mistakes."""

import io
import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.sources.load_data_set import ImageSet
from distill.errors import UserError
from distill.events import End, Start
from distill.files import run_json_schemas
from distill.metrics import Array
from distill.models.epoch_weights import saved_epochs, weights_path
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.recipe.recipes import Recipe
from distill.runs import read_predictions
from distill.runs.commands_to_repeat import training_commands
from distill.runs.read_predictions import Predictions
from distill.runs.run_folder import (
    FINISHED_EARLY,
    IS_TESTED,
    Role,
    RunFolder,
    file_sha256,
    write_bytes,
    write_json,
)

N_MISTAKES = 64  # the most confident mistakes are saved with their pixels
# Tolerance, relative to the largest logit: rounding depends on device and number of processes.
ROUNDING = 1e-3


def write_result(
    folder: RunFolder,
    recipe: Recipe,
    start: Start,
    end: End,
    data: dict[str, Any],
    teachers: str,
    *,
    is_tested: bool = True,
    imported: dict[str, Any] | None = None,
    early: dict[str, int] | None = None,
) -> None:
    """Write result.json, the last file of a run: the run is finished once it exists.

    `data`: `fingerprint` and `class_names` of the train split, `class_names_fingerprint`, and
    `test_fingerprint` and `test_images` (their number) of the test split. `teachers`: the
    fingerprint of the teachers' weights; empty without a teacher. `is_tested`: whether `end` has
    the measures on the test split. `imported`: file and normalisation of weights that another
    program trained. `early`: the trained and planned epochs and steps of a run that was finished
    early.
    """
    result = _figures(recipe, start, end, data, teachers)
    if imported is not None:
        result["imported"] = imported
    if early is not None:
        result[FINISHED_EARLY] = early
    result |= _weight_hashes(folder, start.role)
    if is_tested:
        result["evaluation"] = file_sha256(folder.evaluation)
    else:
        result[IS_TESTED] = False
    result["commands"] = training_commands(folder, recipe, result)
    write_json(folder.result_file, result)


def _weight_hashes(folder: RunFolder, role: Role) -> dict[str, Any]:
    """Return the sha256 of the final weights, and of the weights of saved epochs by epoch."""
    return {
        "weights": file_sha256(folder.weights(role)),
        "epoch_weights": {
            str(epoch): file_sha256(weights_path(folder, epoch)) for epoch in saved_epochs(folder)
        },
    }


def check_result(recipe: Recipe, start: Start, data: dict[str, Any], teachers: str) -> None:
    """Raise UserError if result.json, written after the training, would be invalid.

    Called before the training. `data`: fingerprints and class names of the images. `teachers`: the
    fingerprint of the teachers' weights.
    """
    end = End(0, {}, start.parameters, 0.0, "")
    try:
        result = run_json_schemas.parsed(json.dumps(_figures(recipe, start, end, data, teachers)))
        run_json_schemas.check(run_json_schemas.Result, result)
    except run_json_schemas.Invalid as fault:
        raise UserError(
            f"the finished run would be unreadable: in its result.json, {fault}.\n"
            "Change that value in the recipe, the images or the teacher's run."
        ) from None


def _figures(
    recipe: Recipe, start: Start, end: End, data: dict[str, Any], teachers: str
) -> dict[str, Any]:
    """Return the content of result.json, except for the fingerprints of the run's files."""
    return {
        "role": start.role,
        "recipe": start.recipe,
        "recipe_fingerprint": recipe_fingerprint(recipe),
        "network": start.network,
        "parameters": end.parameters,
        "class_names": data["class_names"],
        "data": _data_figures(start, data),
        "teacher": _teacher_figures(recipe, start, teachers),
        "epoch": end.epoch,
        "epochs": start.epochs,
        "metrics": end.metrics,
        "elapsed_s": end.elapsed_s,
        "total_s": None if math.isnan(end.total_s) else end.total_s,
        "device": start.device,
        "precision": start.precision,
        "processes": start.processes,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _data_figures(start: Start, data: dict[str, Any]) -> dict[str, Any]:
    """Return the source, fingerprints and numbers of a run's images for result.json."""
    return {
        "source": start.data,
        "fingerprint": data["fingerprint"],
        "test_fingerprint": data["test_fingerprint"],
        "test_images": data["test_images"],
        "class_names_fingerprint": data["class_names_fingerprint"],
        "train_images": start.train_images,
        "val_images": start.val_images,
    }


def _teacher_figures(recipe: Recipe, start: Start, teachers: str) -> dict[str, Any]:
    """Return the runs, fingerprint and accuracy of a run's teachers for result.json.

    `teachers`: the fingerprint of their weights; empty without a teacher.
    """
    return {
        "runs": list(recipe.teacher.runs) if recipe.teacher and teachers else [],
        "fingerprint": teachers,
        "top1": start.teacher_top1,
        "top1_images": start.teacher_images,
        **_imported_teachers(recipe if teachers else None),
    }


def _imported_teachers(recipe: Recipe | None) -> dict[str, Any]:
    """Return {"imported": run folders} if another program trained the weights of some teachers."""
    runs = recipe.teacher.runs if recipe is not None and recipe.teacher else ()
    imported = [run for run in runs if "imported" in RunFolder(Path(run)).result()]
    return {"imported": imported} if imported else {}


def write_evaluation(
    folder: RunFolder,
    test: ImageSet,
    logits: Tensor,
    teacher_logits: Tensor | None,
    held_out: tuple[Tensor, Tensor] | None,
) -> None:
    """Write evaluation.npz, the predictions on the test split.

    Its arrays are `logits` [N, C] and `labels` [N] in the split's order, `teacher_logits` [N, C] if
    there is a teacher, and the most confident mistakes: their indices `mistakes` [M] and
    `mistake_pixels` uint8 [M, 3, H, W]. `held_out`: logits [V, C] and labels [V] of the held-out
    images, written as `val_logits` and `val_labels`; None if nothing is held out.
    """
    logits = logits.cpu()
    confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
    wrong = torch.nonzero(predicted != torch.from_numpy(test.labels)).flatten()
    mistakes = wrong[confidence[wrong].argsort(descending=True)][:N_MISTAKES].numpy()
    arrays = {
        "logits": logits.numpy(),
        "labels": test.labels,
        "mistakes": mistakes,
        "mistake_pixels": test.images[mistakes],
    }
    if teacher_logits is not None:
        arrays["teacher_logits"] = teacher_logits.cpu().numpy()
    if held_out is not None:
        arrays["val_logits"], arrays["val_labels"] = (tensor.cpu().numpy() for tensor in held_out)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(folder.evaluation, buffer.getvalue())


def matching_arrays(saved: Predictions | None, logits: Array) -> dict[str, Array]:
    """Return the arrays of evaluation.npz, by name, if its logits equal the computed ones.

    `saved`: the content of evaluation.npz. `logits` [N, C]: just computed. Equality up to rounding
    shows that the file is of the same weights and images. Returns an empty dictionary if the logits
    differ, or if there is no file.
    """
    if saved is None or saved.logits.shape != logits.shape:
        return {}
    is_same = np.abs(saved.logits - logits).max() <= ROUNDING * np.abs(logits).max()
    arrays = {name: array for name, array in vars(saved).items() if array is not None}
    return arrays if is_same else {}


def read_evaluation(folder: RunFolder) -> Predictions | None:
    """Read evaluation.npz; None if it is missing, damaged, or contradicts result.json."""
    with suppress(UserError):
        return read_predictions.read_run(folder)
    return None
