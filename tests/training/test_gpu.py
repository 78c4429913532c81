"""What only a CUDA device can show: no waiting in the step, mixed precision, the same batches."""

import pytest
import torch

from distill.events import Epoch
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from distill.training import build
from distill.training.loop import step
from distill.training.run import TrainingRequest, train_and_test
from tests.make_runs import train, two_epochs

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("fresh_accelerate")]


def test_a_step_waits_for_nothing(teacher, tmp_path) -> None:
    everything = [*two_epochs(teacher), "train.precision='bf16'"]
    recipe = recipes.load("tiny", everything).recipe
    ready = build.build(recipe, "student", RunFolder(tmp_path))
    step(ready, 0)  # draws the view, and lets the libraries choose their kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for k in range(1, 5):
            step(ready, k)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_and_resumes(teacher, tmp_path, precision) -> None:
    chosen = [*two_epochs(teacher), f"train.precision='{precision}'"]
    resolved = recipes.load("tiny", chosen)
    out = tmp_path / precision
    for event in train_and_test(TrainingRequest("student", resolved.recipe, "tiny", out)):
        if isinstance(event, Epoch) and event.epoch == 2:
            break
    folder, events = train(out, *chosen, resume=True)
    assert folder.is_finished
    assert events[0].first_step == 10
    assert events[0].precision == precision
