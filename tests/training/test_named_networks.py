"""Networks of the CRD benchmark as student and as teacher: trained, exported and read back."""

from pathlib import Path

import pytest

from distill.components.build_network import load_trained
from distill.export import export
from distill.recipe import recipes
from networks import network_catalogue
from tests.make_runs import train

DEEPEST = {"resnet101", "resnet152"}  # built as resnet50 is
NETWORKS = ("resnet8", "resnet8x4", "wrn-10-1", *sorted(network_catalogue.FIXED.keys() - DEEPEST))
AS_TEACHER = [
    pytest.param(name, marks=pytest.mark.long if name == "resnet8" else pytest.mark.slow)
    for name in NETWORKS
]
SMALL = ("data.train_images=64", "train.batch_size=32")  # two steps
TERMS = ("loss.at.weight=1", "student.max_params=100000000")
LABELS = ("loss.kd=false", "loss.hard.weight=1")
FORMATS = ("onnx", "torch-export", "safetensors")


@pytest.fixture(scope="module")
def vgg_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another architecture than most students."""
    out = tmp_path_factory.mktemp("vgg") / "teacher"
    train(
        out, "teacher.network=vgg8", "loss.kd=false", "loss.hard.weight=1", *SMALL, role="teacher"
    )
    return out


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_student_is_distilled_and_exported(network: str, vgg_teacher: Path, tmp_path: Path) -> None:
    """Two steps of KD and attention transfer; each format predicts as the network does."""
    given = (f"teacher.runs=['{vgg_teacher}']", f"student.network={network}", *TERMS, *SMALL)
    run, _ = train(tmp_path / "student", *given)
    result = run.result()
    assert result["network"] == (network if network[:3] != "wrn" else network.upper())
    net = load_trained(run)
    assert result["parameters"] == sum(p.numel() for p in net.parameters())
    report = export.export(run, FORMATS, tmp_path / "export")
    assert report["formats"].keys() == set(FORMATS)


@pytest.mark.parametrize("network", AS_TEACHER)
def test_teacher_is_exported_and_distils_logits_and_maps(network: str, tmp_path: Path) -> None:
    named = f"teacher.network={network}"
    teacher, _ = train(tmp_path / "teacher", named, *LABELS, *SMALL, role="teacher")
    report = export.export(teacher, FORMATS, tmp_path / "export")
    assert report["formats"].keys() == set(FORMATS)
    given = (f"teacher.runs=['{teacher.path}']", "student.stages=3", *TERMS, *SMALL)
    run, _ = train(tmp_path / "student", *given)
    assert run.result()["teacher"]["runs"] == [str(teacher.path)]


@pytest.mark.long
def test_named_student_is_trained_to_same_bits(tmp_path: Path) -> None:
    """Its recipe.toml has the name without keys of a design."""
    given = ("student.network=resnet8", *LABELS, *SMALL)
    run, other = (train(tmp_path / name, *given)[0] for name in "ab")
    student = recipes.read(run.recipe).model_dump(exclude_none=True)["student"]
    assert student.keys() == {"network", "projector_factor", "max_params"}
    assert run.result()["weights"] == other.result()["weights"]
