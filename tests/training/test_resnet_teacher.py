"""A teacher that is a residual network, described and trained as a student is."""

import json
from pathlib import Path

import pytest
import torch

from distill.components import layer_summary
from distill.components.build_network import build_design, build_network, load_trained, network_name
from distill.data.augment.crop_flip import to_float
from distill.errors import UserError
from distill.evaluation.evaluate_run import evaluate_run
from distill.events import TOTAL, Start, Step
from distill.recipe import recipes
from distill.report import run_report
from distill.runs.run_folder import RunFolder
from distill.terminal.progress import head_lines
from distill.training import run
from distill.training.loop import step
from distill.training.reproduce_step import repeat_step
from students.design import Design
from students.resnet import ResNet
from tests.cli.command_line import RunCli
from tests.make_runs import EFFICIENT_TEACHER, Events, drawn, prepared, train
from tests.training.test_run import digest, same

Finished = tuple[RunFolder, Events]
DESIGN = [
    "teacher.network=resnet",
    "teacher.stages=2",
    "teacher.blocks=1",
    "teacher.channels=[4,6]",
]


def metrics(events: Events) -> list[dict[str, float]]:
    return [event.metrics for event in events if isinstance(event, Step)]


@pytest.mark.long
def test_losses_are_those_of_the_same_student(
    efficient: Finished, resnet_teacher: Finished
) -> None:
    """Trained without a teacher, step by step; the weights are the same bits."""
    names = [name for name in metrics(efficient[1])[0] if name.startswith("loss/")]
    ours, theirs = (
        [[each[name] for name in names] for each in metrics(events)]
        for _, events in (resnet_teacher, efficient)
    )

    assert len(ours) == 20
    assert ours == theirs
    weights = resnet_teacher[0].weights("teacher"), efficient[0].weights("student")
    assert digest(weights[0]) == digest(weights[1])


@pytest.mark.long
def test_a_resumed_teacher_is_the_uninterrupted_one(
    resnet_teacher: Finished, tmp_path: Path
) -> None:
    recipe = recipes.load("tiny", EFFICIENT_TEACHER).recipe
    events = run.train_and_test(run.TrainingRequest("teacher", recipe, "tiny", tmp_path))
    for event in events:
        if isinstance(event, Step) and event.step == 13:
            break  # killed in the middle of epoch 2
    events.close()  # type: ignore[attr-defined]
    resumed, _ = train(tmp_path, *EFFICIENT_TEACHER, role="teacher", resume=True)

    assert same(resnet_teacher[0], resumed)
    assert digest(resnet_teacher[0].weights("teacher")) == digest(resumed.weights("teacher"))


def test_a_teacher_has_no_budget() -> None:
    made = recipes.load("tiny", [*DESIGN, "teacher.channels=[512,1024]"]).recipe
    planned = build_design(made, 10, "teacher")

    assert planned.parameters > 5_000_000
    assert planned == Design.of(stages=2, blocks=1, channels=[512, 1024])
    assert network_name(made, "teacher", 10) == "ResNet [1, 1] 512-1024"


def test_every_key_reaches_the_network() -> None:
    more = ["activation=celu", "norm_momentum=0.4", "block_dropout=0.1", "head_dropout=0.2"]
    made = recipes.load("tiny", [*DESIGN, *(f"teacher.{each}" for each in more)]).recipe
    net = build_network(made, "teacher", 10)
    student = recipes.load(
        "tiny",
        ["student.channels=[4,6]", *(f"student.{each}" for each in more)],
    ).recipe

    assert isinstance(net, ResNet)
    assert str(net) == str(build_network(student, "student", 10))
    assert net.dropout.p == 0.2


@pytest.mark.long
def test_the_run_describes_its_network(resnet_teacher: Finished) -> None:
    folder, events = resnet_teacher
    start = events[0]
    assert isinstance(start, Start)
    name = "ResNet [1, 0, 1] 4-8-16 pooled"

    assert start.network == folder.result()["network"] == name
    assert (
        str(next(head_lines(start))).split()
        == f"teacher {name}, {start.parameters:,} parameters".split()
    )
    measured = evaluate_run(folder)
    recipe = recipes.read(folder.recipe)
    planned = build_design(recipe, 10, "teacher")
    assert (measured["macs"], measured["parameters"]) == (planned.macs, planned.parameters)
    shown = layer_summary.layers_of_recipe(recipe, "teacher", 10)
    assert sum(layer.parameters for layer in shown) == planned.parameters
    out = folder.path.parent / "report.html"
    run_report.write(folder, out, shown)
    assert f"A teacher, {name}" in out.read_text()


@pytest.mark.long
def test_a_step_of_it_is_replayed(resnet_teacher: Finished) -> None:
    folder, events = resnet_teacher
    again = repeat_step(folder, 1)

    assert again["loss/total"] == pytest.approx(metrics(events)[0]["loss/total"])


def overrides(folder: RunFolder, *more: str) -> list[str]:
    return [f"teacher.runs=['{folder.path}']", "student.stages=3", *more]


@pytest.mark.long
def test_logits_teach_live_and_cached(resnet_teacher: Finished) -> None:
    """Cached ones are rounded to float16."""
    live = prepared(*overrides(resnet_teacher[0]))
    cached = [prepared(*overrides(resnet_teacher[0], "cache.views=1")) for _ in range(2)]
    losses = [float(step(made, 0)["kd"]) for made in (live, *cached)]

    assert losses[0] > 0
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-2)


def test_teacher_is_the_trained_network(resnet_teacher: Finished) -> None:
    made = prepared(*overrides(resnet_teacher[0]))
    trained = load_trained(resnet_teacher[0])
    images = to_float(torch.from_numpy(drawn().images[:16]))
    assert made.live_teacher is not None

    with torch.no_grad():
        torch.testing.assert_close(
            made.live_teacher.extractor(images).logits, trained(images), rtol=1e-4, atol=1e-5
        )


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["fitnet", "at", "sp", "nst", "pkt", "rkd", "vid", "crd", "reviewkd"]
)
def test_feature_maps_of_a_resnet_teacher_are_used(resnet_teacher: Finished, name: str) -> None:
    made = prepared(*overrides(resnet_teacher[0], f"loss.{name}.weight=1"))
    losses = step(made, 0)

    assert set(losses) == {"hard", "kd", name, TOTAL}
    assert all(map(torch.isfinite, losses.values()))


@pytest.mark.long
@pytest.mark.parametrize(("pool", "features"), [("global", 6), ("8", 24)])
def test_simkd_reuses_its_classifier(tmp_path: Path, pool: str, features: int) -> None:
    """The message names the width and the pool that fit."""
    alone = ["loss.kd=false", "loss.hard.weight=1", "data.train_images=32"]
    folder, _ = train(tmp_path / "t", *DESIGN, *alone, f"teacher.pool={pool}", role="teacher")
    simkd = [f"teacher.runs=['{folder.path}']", "loss.kd=false", "loss.simkd.weight=1"]
    with pytest.raises(UserError, match=f"reads {features} features; .* reads 20") as error:
        prepared(*simkd, "student.projector_width=20")
    typed = ["student.projector_width=6", f"student.pool={pool}"]
    assert " ".join(f"--set {each}" for each in typed) in str(error.value)

    made = prepared(*simkd, *typed)
    step(made, 0)
    assert torch.equal(made.model.head.weight, load_trained(folder).get_submodule("head").weight)


@pytest.mark.long
def test_it_is_trained_and_teaches_from_command_line(run_cli: RunCli, tmp_path: Path) -> None:
    small = ["--set", "data.train_images=24", "--set", "train.batch_size=8"]
    design = [word for each in DESIGN for word in ("--set", each)]
    alone = ["--set", "loss.kd=false", "--set", "loss.hard.weight=1"]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    result = run_cli("train-teacher", "-r", "tiny", *small, *design, *alone, "--out", teacher)
    assert result.code == 0, result.err
    assert "ResNet [1, 1] 4-6" in result.err

    result = run_cli("distill", "-r", "tiny", *small, "--teacher", teacher, "--out", student)
    assert result.code == 0, result.err
    assert json.loads((student / "result.json").read_text())["teacher"]["runs"] == [str(teacher)]
