"""Write a Jupyter notebook of a finished run: its network, curves and test accuracy.

The notebook needs torch, numpy, matplotlib and the files beside it, but not this project. Names
from the run's files are in run.json and in escaped Markdown, never in the code of a cell.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.files.escape_text import markdown, markdown_code
from distill.recipe import compare_recipes
from distill.report.curve_sections import lines_by_figure
from distill.report.execute_notebook import Outputs
from distill.runs.epoch_series import Floats
from distill.runs.read_run_folder import RunRecord
from distill.runs.run_folder import write_text

NOTEBOOK, VALUES = "notebook.ipynb", "run.json"
TEACHERS = "teacher.runs"
IMPORTS = """\
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

plt.rcParams["text.parse_math"] = False  # a class may be called "$x$"
run = json.loads(Path("run.json").read_text(encoding="utf-8"))
names = run["classes"]"""
COUNT = """\
model = project1_model()
parameters = sum(p.numel() for p in model.parameters())
print(f"{parameters:,} parameters")
assert parameters < 5_000_000"""
CURVES = """\
curves = run["curves"]
rows = max(1, (len(curves) + 1) // 2)
figure, grid = plt.subplots(rows, 2, figsize=(10, 3 * rows), squeeze=False, layout="constrained")
for axes, (title, lines) in zip(grid.flat, curves.items()):
    for name, (epochs, values) in lines.items():
        values = np.array(values, dtype=float)
        axes.plot(epochs, values, marker="o" if len(epochs) <= 12 else "", label=name)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
for axes in grid.flat[len(curves) :]:
    axes.set_axis_off()
plt.show()"""
EVALUATE = """\
weights = torch.load("project1_model.pt", weights_only=True, map_location="cpu")
model.load_state_dict(weights)
model.eval()

test = np.load("test_images.npz")
images, labels = torch.from_numpy(test["images"]), torch.from_numpy(test["labels"])
mean, std = (torch.tensor(run[name]).view(3, 1, 1) for name in ("mean", "std"))
with torch.no_grad():
    logits = torch.cat([model((part / 255 - mean) / std) for part in images.split(500)])
correct = logits.argmax(dim=1) == labels
accuracy = correct.double().mean().item()
print(f"test accuracy {100 * accuracy:.2f} % of {len(labels):,} images")
print(f"as the training run measured it: {100 * run['test_accuracy']:.2f} %")
assert abs(accuracy - run["test_accuracy"]) < 0.002"""
CLASSES = """\
counts = np.zeros((len(names), len(names)), dtype=int)  # by label and prediction
np.add.at(counts, (labels.numpy(), logits.argmax(dim=1).numpy()), 1)
shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
axes.imshow(np.sqrt(shares), cmap="Blues")  # the root makes rare mistakes visible
axes.set(xlabel="prediction", ylabel="label")
if len(names) <= 20:
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
plt.show()

best = np.argsort(-np.diag(shares), kind="stable")
for k in best if len(best) <= 20 else [*best[:10], *best[-10:]]:
    print(f"{100 * shares[k, k]:6.2f} %  {names[k]}")"""
MISTAKES = """\
confidence, prediction = logits.softmax(dim=1).max(dim=1)
wrong = torch.nonzero(~correct).flatten()
worst = wrong[confidence[wrong].argsort(descending=True)[:12]]
figure, grid = plt.subplots(3, 4, figsize=(9, 7.5), layout="constrained")
for axes in grid.flat:
    axes.set_axis_off()
for axes, k in zip(grid.flat, worst.tolist()):
    axes.imshow(images[k].permute(1, 2, 0))
    axes.set_title(f"{names[labels[k]]}\\npredicted {names[prediction[k]]}", fontsize=9)
plt.show()"""


def check_absent(folder: Path) -> None:
    """Raise UserError if `folder` has a notebook, which its reader may have edited."""
    if (folder / NOTEBOOK).exists():
        raise UserError(
            f"{folder / NOTEBOOK} exists, and may have been edited since: it is not replaced.\n"
            "Move it elsewhere, or choose another --out."
        )


def values(record: RunRecord, exported: Mapping[str, Any]) -> str:
    """Return the content of run.json: classes, curves and the `exported` values, as JSON.

    A curve is [epochs, values]; a value that is not finite is null.
    """
    curves = {
        figure: {name: [_plain(line.x), _plain(line.y)] for name, line in lines.items()}
        for figure, lines in lines_by_figure(record).items()
    }
    return json.dumps({"classes": record.class_names, "curves": curves, **exported})


def _plain(numbers: Floats) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in numbers]


def code_cells(code: str) -> dict[str, str]:
    """Return the source of the code cells by name, in order; `code` is that of the network."""
    return {
        "imports": IMPORTS,
        "network": code.rstrip(),
        "parameters": COUNT,
        "curves": CURVES,
        "test": EVALUATE,
        "classes": CLASSES,
        "mistakes": MISTAKES,
    }


def write(
    folder: Path, record: RunRecord, lead: str, code: str, outputs: Mapping[str, Outputs]
) -> Path:
    """Write the notebook into `folder`; return its path.

    `lead`: a sentence on the run. `outputs`: those of each code cell, by its name.
    """
    document = notebook(record, lead, code, outputs)
    write_text(folder / NOTEBOOK, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return folder / NOTEBOOK


def notebook(
    record: RunRecord, lead: str, code: str, outputs: Mapping[str, Outputs]
) -> dict[str, Any]:
    """Return the notebook as JSON of Jupyter's format 4.5."""
    texts = {
        "imports": f"# {markdown(record.name)}\n\n{markdown(lead)}\n\nThis notebook runs from top "
        "to bottom with torch, numpy, matplotlib and the files beside it.",
        "network": "## The network\n\nIt takes normalised images and returns logits.",
        "curves": "\n".join(_training_text(record)),
        "test": "## Test accuracy\n\nThe trained weights, on all test images.",
        "mistakes": "## The most confident mistakes",
    }
    cells: list[dict[str, Any]] = []
    for number, (name, source) in enumerate(code_cells(code).items(), start=1):
        if name in texts:
            text = {"id": f"{name}-text", "cell_type": "markdown", "metadata": {}}
            cells.append(text | {"source": texts[name]})
        cell = {"id": name, "cell_type": "code", "metadata": {}, "execution_count": number}
        cells.append(cell | {"source": source, "outputs": _jupyter_outputs(outputs[name])})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}


def _training_text(record: RunRecord) -> Iterator[str]:
    """Yield the lines of the Markdown on the training, with the recipe's keys as a table.

    Run folders of teachers, which are paths of this machine, are left out.
    """
    name = record.requested_recipe
    yield "## Training\n"
    yield f"The recipe {markdown(name or '')} sets these keys; all others have their defaults.\n"
    yield "| key | value |\n| --- | --- |"
    for key, value in compare_recipes.changed_values(record.recipe).items():
        if key != TEACHERS and compare_recipes.is_read(key, record.role):
            yield f"| {_cell(key)} | {_cell(value)} |"


def _cell(text: str) -> str:
    """Return text as code in a cell of a Markdown table."""
    return markdown_code(text).replace("|", r"\|")


def _jupyter_outputs(outputs: Outputs) -> Sequence[dict[str, Any]]:
    shown: list[dict[str, Any]] = [
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": png}}
        for png in outputs.pngs
    ]
    if outputs.text:
        shown.append({"output_type": "stream", "name": "stdout", "text": outputs.text})
    return shown
