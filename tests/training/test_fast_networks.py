"""Runs of networks with pooled stages and a whitened, frozen stem: airbench96's in small.

Their norms' scales are frozen, their biases are trained faster, and the averaged weights have
statistics of their own.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from distill.components.build_network import load_trained
from distill.components.data_pipeline import split_images
from distill.events import Step
from distill.models import reestimate_batch_norm
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from distill.training import build, run
from distill.training.loop import step
from students.whitened_stem import whitening_filters
from tests.make_runs import EFFICIENT, Events, drawn, prepared, train
from tests.training.test_run import digest, same

pytestmark = pytest.mark.long

Finished = tuple[RunFolder, Events]


def test_stem_is_whitened_by_training_part_alone() -> None:
    made = prepared(*EFFICIENT)
    split = split_images(recipes.load("tiny", EFFICIENT).recipe, drawn())
    parts = [split.train, split.held_out]
    ours, others = (
        whitening_filters(torch.from_numpy(part.images), made.model.normalize.std, 2).float()
        for part in parts
        if part is not None
    )

    assert torch.equal(made.model.stem[0].weight, ours)
    assert not torch.equal(made.model.stem[0].weight, others)


def test_two_seeds_have_same_stem_and_other_stages() -> None:
    one, two = (prepared(*EFFICIENT, f"train.seed={seed}").model for seed in (0, 1))

    assert torch.equal(one.stem[0].weight, two.stem[0].weight)
    assert not torch.equal(one.head.weight, two.head.weight)


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_a_frozen_stem_is_neither_trained_nor_decayed(frozen: str) -> None:
    made = prepared(*EFFICIENT, f"student.stem_frozen={frozen}", "optim.weight_decay=0.1")
    stem = made.model.stem[0]
    before = [parameter.detach().clone() for parameter in (stem.weight, stem.bias)]
    for k in range(2):
        step(made, k)
    trained = {id(p) for group in made.optimizer.param_groups for p in group["params"]}

    assert torch.equal(stem.weight, before[0]) is (frozen == "true")
    assert (id(stem.weight) in trained) is (frozen == "false")
    assert not torch.equal(stem.bias, before[1])


def test_resumed_is_uninterrupted_bit_for_bit(efficient: Finished, tmp_path: Path) -> None:
    request = run.TrainingRequest(
        "student", recipes.load("tiny", EFFICIENT).recipe, "tiny", tmp_path
    )
    events = run.train_and_test(request)
    for event in events:
        if isinstance(event, Step) and event.step == 13:
            break  # killed in the middle of epoch 2
    events.close()  # type: ignore[attr-defined]
    resumed, later = train(tmp_path, *EFFICIENT, resume=True)

    assert later[0].first_step == 10  # type: ignore[union-attr]
    assert same(efficient[0], resumed)
    assert digest(efficient[0].weights("student")) == digest(resumed.weights("student"))


def test_biases_follow_schedule_at_their_own_scale() -> None:
    made = prepared(*EFFICIENT, "optim.schedule=constant", "optim.lr=0.01")
    made.lr_factor = 0.5
    step(made, 0)
    rates = {
        name: group["lr"]
        for group in made.optimizer.param_groups
        for name, p in made.model.named_parameters()
        if any(p is each for each in group["params"])
    }

    fast = {name for name, rate in rates.items() if rate == 0.04}
    assert {name for name, rate in rates.items() if rate == 0.005} == rates.keys() - fast
    assert {name for name in fast if "norm" not in name and "residual" not in name} == {
        "stem.0.bias"
    }
    norms = [m for m in made.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(fast) == len(norms) + 1
    assert not any(name.endswith("norm.weight") for name in rates)


def test_saved_weights_have_the_measured_statistics(efficient: Finished) -> None:
    """Of the weights' file: measured again, they are what they are."""
    folder, _ = efficient
    recipe = recipes.load("tiny", EFFICIENT).recipe
    net, split = load_trained(folder), split_images(recipe, drawn())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = build.batch_norm_images(recipe, split.train)
    assert images is not None
    reestimate_batch_norm.recompute_statistics(net, images, torch.device("cpu"))

    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-6, msg=name)
