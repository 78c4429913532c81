"""Teacher outputs, live and cached, for each kind of loss term."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.components.build_network import build_network
from distill.components.data_pipeline import split_images
from distill.data.loader import Batch
from distill.errors import UserError
from distill.events import TOTAL
from distill.losses.objective import LossInputs, UnmixedTeacherLogits
from distill.models.features import ModelOutput
from distill.recipe import recipes
from distill.recipe.count_parameters import count_networks
from distill.recipe.loss_schema import TEACHERS, Losses
from distill.teacher import selection
from distill.teacher.teacher import Teacher
from distill.training.loop import step
from tests.losses.loss_inputs import loss_inputs
from tests.losses.test_properties import made
from tests.make_runs import drawn, prepared, train

THREE = "student.stages=3"
FREE_TERMS = ("labels", "teacher", "taps", "sample index", "pair")


class Watched:
    """Loss inputs that remember which were read."""

    def __init__(self, given: LossInputs) -> None:
        self.given, self.read = given, set[str]()

    def __getattr__(self, name: str) -> object:
        self.read.add(name)
        return getattr(self.given, name)


@pytest.mark.parametrize("name", Losses.model_fields)
def test_a_term_needs_what_it_reads(name: str) -> None:
    """The tables' word against the loss itself."""
    watched = Watched(loss_inputs(like_teacher=name == "fsp"))  # it needs equal channels
    made(name)(watched)
    reads = {
        "labels": "targets" in watched.read,
        "teacher": "teacher" in watched.read,
        "taps": {"student_taps", "teacher_taps"} <= watched.read,
        "sample index": "samples" in watched.read,
        "pair": "unmixed" in watched.read,
    }
    declared = Losses.model_fields[name].annotation.__args__[0].needs
    assert {need for need, is_read in reads.items() if is_read} == declared & set(FREE_TERMS)
    assert ("live teacher" in declared) == reads["taps"]


def test_terms_that_need_one_label_are_known() -> None:
    mixed = loss_inputs()
    blurred = LossInputs(mixed.student, 0.6 * mixed.targets + 0.08, mixed.teacher)
    sharp = LossInputs(mixed.student, mixed.targets, mixed.teacher)
    dkd = made("dkd")
    assert torch.equal(dkd(blurred), dkd(sharp)), "it cannot see that a label is mixed: refused"
    assert "one label" in Losses.model_fields["dkd"].annotation.__args__[0].needs


class Source:
    """A teacher that counts."""

    def __init__(self) -> None:
        self.mixed_asked = self.plain_asked = 0

    def mixed_outputs(self, view, rows, images):  # type: ignore[no-untyped-def]
        self.mixed_asked += 1
        return ModelOutput(torch.zeros(len(rows), 10), {"maps": images})

    def unmixed_logits(self, view, rows):  # type: ignore[no-untyped-def]
        self.plain_asked += 1
        return rows[:, None].float()


class HalfMixed:
    """A view in which sample i is mixed with i + 1, three quarters its own."""

    def partners(self, rows):  # type: ignore[no-untyped-def]
        return rows + 1

    def weight_of_own_label(self, rows):  # type: ignore[no-untyped-def]
        return torch.full((len(rows), 1), 0.75)


@pytest.mark.parametrize(
    ("needs", "mixed", "plain"),
    [({"labels"}, 0, 0), ({"teacher"}, 1, 0), ({"live teacher", "taps"}, 1, 0), ({"pair"}, 0, 2)],
)
def test_teacher_computes_only_what_is_needed(needs, mixed, plain) -> None:
    source, rows = Source(), torch.tensor([3, 5])
    batch = Batch(HalfMixed(), rows, torch.rand(2, 3, 4, 4), torch.zeros(2, 10))
    output = Teacher(source)(batch, frozenset(needs))
    assert (source.mixed_asked, source.plain_asked) == (mixed, plain)
    assert (output.logits is not None) == bool(mixed)
    assert (needs & TEACHERS != set()) == bool(mixed + plain)
    if plain:
        assert isinstance(output.unmixed, UnmixedTeacherLogits)
        assert output.unmixed.own.flatten().tolist() == [3, 5]
        assert output.unmixed.partner.flatten().tolist() == [4, 6]
        assert output.unmixed.lam.flatten().tolist() == [0.75, 0.75]


@pytest.mark.long
def test_teacher_without_active_terms_is_not_run(teacher: Path) -> None:
    run = prepared(f"teacher.runs=['{teacher}']", "loss.kd.when.end=0.35", "train.epochs=1")
    calls = []
    source = run.teacher.source
    query = source.mixed_outputs
    source.mixed_outputs = lambda *a: calls.append(1) or query(*a)
    losses = [step(run, k) for k in range(6)]
    assert len(calls) == 4  # of ten steps, those before 0.35
    assert [set(each) == {"hard", TOTAL} for each in losses] == [False] * 4 + [True] * 2


@pytest.mark.long
def test_parameters_of_terms_are_trained_and_saved(teacher: Path, tmp_path: Path) -> None:
    sets = [f"teacher.runs=['{teacher}']", THREE, "loss.vid.weight=1", "optim.clip=0.001"]
    run = prepared(*sets, "optim.name=momentum", "optim.momentum=0.0", "optim.weight_decay=0.0")
    own = list(run.loss.parameters())
    assert own and {id(p) for p in own} <= {
        id(p) for group in run.optimizer.param_groups for p in group["params"]
    }
    before = [p.detach().clone() for p in run.parameters()]
    step(run, 0)
    moved = sum(
        (p - old).square().sum() for p, old in zip(run.parameters(), before, strict=True)
    ).sqrt()
    assert moved.item() == pytest.approx(0.001 * run.lr(0), rel=1e-3)
    assert any(not torch.equal(p, old) for p, old in zip(own, before[-len(own) :], strict=True))


@pytest.mark.long
def test_a_term_s_own_state_is_resumed(teacher: Path, tmp_path: Path) -> None:
    """CRD's banks and the size of its scores go on where they stood, bit for bit."""
    sets = [
        f"teacher.runs=['{teacher}']", THREE, "loss.kd=false", "train.epochs=2",
        "loss.crd.weight=0.5", "loss.crd.negatives=32", "loss.crd.dims=8",
    ]  # fmt: skip
    whole, _ = train(tmp_path / "whole", *sets)
    from distill.training.run import TrainingRequest, train_and_test

    resolved = recipes.load("tiny", sets)
    request = TrainingRequest(
        "student", resolved.recipe, resolved.name, tmp_path / "cut", resume=True
    )
    for event in train_and_test(request):
        if type(event).__name__ == "Epoch":
            break
    again, _ = train(tmp_path / "cut", *sets, resume=True)
    assert again.weights("student").read_bytes() == whole.weights("student").read_bytes()


@pytest.mark.long
def test_simkd_reuses_teachers_classifier_unchanged(teacher: Path) -> None:
    sets = [f"teacher.runs=['{teacher}']", THREE, "loss.kd=false", "loss.simkd.weight=1"]
    run = prepared(*sets, "student.projector_width=64", "ema.decay=0.5")
    theirs = run.teacher.source.extractor.net.head
    step(run, 0)
    for ours in (run.model.head, run.ema.module.head):
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert not any(p.requires_grad for p in run.model.head.parameters())


def test_wrong_classifier_is_refused_with_fitting_width(teacher: Path) -> None:
    sets = [f"teacher.runs=['{teacher}']", THREE, "loss.kd=false", "loss.simkd.weight=1"]
    with pytest.raises(UserError, match="reads 64 features; the student's reads 40") as error:
        prepared(*sets, "student.projector_width=40")
    assert "--set student.projector_width=64" in str(error.value)


def test_a_projector_counts_against_the_budget() -> None:
    spec = ["student.projector_width=640", "student.projector_factor=2"]
    with_it, without = (
        count_networks("kd", spec),
        count_networks("kd"),
    )
    c, inner, wide = 256, 320, 640
    projector = c * inner + inner * inner * 9 + inner * wide + 2 * (inner + inner + wide)
    assert with_it["parameters"] - without["parameters"] == projector + (wide - c) * 10
    assert not with_it["within_budget"]
    with pytest.raises(recipes.RecipeError, match="too many for fewer than 5,000,000"):
        recipes.load("kd", spec)
    net = build_network(recipes.load("simkd").recipe, "student", 10)
    assert sum(p.numel() for p in net.parameters()) == count_networks("simkd")["parameters"]


@pytest.mark.long
def test_several_teachers_have_no_maps_in_common(teacher: Path, tmp_path: Path) -> None:
    other = shutil.copytree(teacher, tmp_path / "other")
    two = f"teacher.runs=['{teacher}', '{other}']"
    with pytest.raises(
        UserError, match="loss.at reads a teacher's feature maps, which .* across 2 teachers"
    ):
        prepared(two, THREE, "loss.at.weight=1")
    assert set(step(prepared(two, THREE), 0)) == {"hard", "kd", TOTAL}


def test_a_mean_of_one_teacher_twice_is_refused(teacher: Path) -> None:
    with pytest.raises(UserError, match=r"/teacher was given 2 times; an ensemble needs different"):
        prepared(f"teacher.runs=['{teacher}', '{teacher}/']", THREE)


def test_missing_map_is_refused_with_existing_ones(teacher: Path) -> None:
    taps = 'loss.at.teacher_taps=["stages.0", "stages.1", "layer4"]'
    with pytest.raises(UserError) as error:
        prepared(f"teacher.runs=['{teacher}']", THREE, "loss.at.weight=1", taps)
    assert str(error.value) == (
        'loss.at.teacher_taps: "layer4" is not a feature map of the teacher; allowed: stem, '
        "stages.0, stages.1, stages.2, maps, features"
    )


@pytest.mark.long
def test_a_student_may_teach_the_next(teacher: Path, tmp_path: Path) -> None:
    """Self-distillation and assistants: any finished run on this data, by its own name."""
    first, _ = train(tmp_path / "first", f"teacher.runs=['{teacher}']")
    second, events = train(tmp_path / "second", f"teacher.runs=['{first.path}']")
    assert events[0].teacher == str(first.path)
    assert second.result()["teacher"]["runs"] == [str(first.path)]
    frozen = selection.load_teacher(
        recipes.read(second.recipe),
        drawn(),
        split_images(recipes.read(second.recipe), drawn()),
    )
    assert isinstance(frozen.net, nn.Module) and not frozen.net.training


@pytest.mark.long
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.filterwarnings("ignore")
def test_a_teacher_teaches_in_mixed_precision_too(teacher) -> None:
    """On a GPU that is the default. Its kernels are in bfloat16, and maps may be requested."""
    options = [f"teacher.runs=['{teacher}']", "train.precision='bf16'"]
    for more in ([], ["student.stages=3", "loss.at.weight=1"]):
        run = prepared(*options, *more)
        assert {p.dtype for p in run.live_teacher.extractor.parameters() if p.dim() == 4} == {
            torch.bfloat16
        }
        losses = step(run, 0)
        assert all(torch.isfinite(value) for value in losses.values())
