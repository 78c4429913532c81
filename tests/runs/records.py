"""Build run records without training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.events import Epoch, Event, Step
from distill.recipe import recipes
from distill.runs.read_predictions import Predictions
from distill.runs.read_run_folder import RunRecord, TestCurve
from distill.runs.run_folder import RunFolder
from tests.terminal.test_display_to_svg import START

SCRIPT = "<script>alert(1)</script>"
N, CLASSES = 20, 4
LABELS = np.arange(N) % CLASSES
ALONE = ("loss.kd=false", "loss.hard.weight=1")


def record(name: str, right: int, *overrides: str, finished: bool = True) -> RunRecord:
    """A run that has the first `right` of 20 test images right."""
    recipe = recipes.load("tiny", overrides).recipe
    result: dict[str, Any] = {
        "role": "student",
        "recipe": "tiny",
        "recipe_fingerprint": "ab12",
        "network": "ResNet [1, 1] 4-8",
        "parameters": 9,
        "device": "cpu",
        "elapsed_s": 2.0,
        "epoch": 1,
        "class_names": ["a", "b", "c", "d"],
        "data": {"fingerprint": "f", "train_images": 45, "val_images": 5, "source": "synthetic"},
        "teacher": {"runs": [], "fingerprint": "", "top1": None},
        "metrics": {"top1/test": right / N, "nll/test": 1.0, "ece/test": 0.1, "top1/val": 0.5},
        "weights": f"cd34 {name}",
    }
    known = RunRecord(
        RunFolder(Path("runs") / name), recipe, events(), result, {}, predictions(right)
    )
    return known if finished else replace(known, result={}, predictions=None)


def events() -> tuple[Event, ...]:
    """Two epochs of ten steps."""
    start = replace(START, steps_per_epoch=10, epochs=5, notes=("a note of the head",))
    losses = {"loss/hard": 2.0, "loss/kd": 3.0, "loss/total": 2.5}
    measured = {"top1/val": 0.4, "nll/val": 1.5, "top1/val_ema": 0.5, "nll/val_ema": 1.4}
    happened: list[Event] = [start]
    for epoch in (1, 2):
        happened += [Step(10 * epoch - 5, epoch - 1, losses | {"lr": 0.1})]
        happened += [Epoch(epoch, 10 * epoch, losses | measured, True, 1.0, 1.0)]
    return tuple(happened)


def averaged_alone(known: RunRecord) -> RunRecord:
    """The same run with measures of the averaged weights and of no others."""
    changed = [
        replace(event, metrics={k: v for k, v in event.metrics.items() if not k.endswith("/val")})
        if isinstance(event, Epoch)
        else event
        for event in known.events
    ]
    metrics = {"top1/test": 0.45, "nll/test": 1.0, "ece/test": 0.1, "top1/val_ema": 0.5}
    result = {**known.result, "metrics": metrics} if known.result else {}
    return replace(known, events=tuple(changed), result=result)


def predictions(right: int, *, with_teacher: bool = False, held_out: bool = False) -> Predictions:
    """The first `right` predictions are the labels, the others the next class."""
    logits = 4 * np.eye(CLASSES)[np.where(np.arange(N) < right, LABELS, (LABELS + 1) % CLASSES)]
    mistakes = np.arange(right, N)
    pixels = np.full((len(mistakes), 3, 32, 32), 200, dtype=np.uint8)
    more: dict[str, Any] = {"teacher_logits": 3 * np.eye(CLASSES)[LABELS]} if with_teacher else {}
    if held_out:
        more |= {"val_logits": logits, "val_labels": LABELS}
    return Predictions(logits, LABELS, mistakes, pixels, **more)


def hostile() -> RunRecord:
    """A run whose every name is markup."""
    known = record("<b onclick=alert(1)>run", 15)
    texts = [key for key, value in recipes.About() if isinstance(value, str)]
    claims = {key: f"<img src=x onerror=alert(1)> {key}" for key in texts}
    recipe = known.recipe.model_copy(update={"about": recipes.About(**claims)})
    data = recipe.data.model_copy(update={"source": f"/tmp/{SCRIPT}"})
    result = known.result | {
        "class_names": [
            SCRIPT,
            "\"><img src=x onerror='alert(1)'>",
            "$\\frac{$ {{ 7 * 7 }}",
            "</svg>",
        ],
        "recipe": "</title><script>alert(2)</script>",
        "network": "<svg onload=alert(1)>",
        "teacher": {"runs": [f"runs/{SCRIPT}"], "fingerprint": SCRIPT, "top1": 0.9},
        "device": "<i>cpu</i>",
        "weights": "'\"><script>alert(3)</script>",
    }
    environment = {
        "command": ["cli.py", "distill", "--out", SCRIPT],
        "host": SCRIPT,
        "packages": {"torch": "<b>2</b>"},
        SCRIPT: "1",
    }
    start = replace(START, notes=(SCRIPT,), steps_per_epoch=10)
    return replace(
        known,
        recipe=recipe.model_copy(update={"data": data}),
        result=result,
        environment=environment,
        events=(start, *known.events[1:]),
        predictions=predictions(15, with_teacher=True, held_out=True),
    )


def curve_of(top1: float) -> TestCurve:
    """One epoch with saved weights, with this accuracy on both splits."""
    measures = {"top1": top1, "nll": 1.0, "ece": 0.1}
    return {
        1: {f"{name}/{split}": v for name, v in measures.items() for split in ("train", "test")}
    }
