"""`import-teacher`: a foreign file of weights becomes a teacher, which distils."""

from pathlib import Path

import pytest
import torch

from distill.runs.run_folder import RunFolder
from tests.cli.command_line import RunCli
from tests.networks.published_networks import published

GIVEN = ["--data", "synthetic", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The published layout in the wrappings of DataParallel and of a training script."""
    state = published("resnet20", 10).state_dict()
    path = tmp_path / "resnet20.pth"
    torch.save({"opt": {"lr": 0.1}, "model": {f"module.{k}": t for k, t in state.items()}}, path)
    return path


@pytest.mark.long
def test_imported_teacher_distils_and_is_named(
    run_cli: RunCli, weights: Path, tmp_path: Path
) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    given = ["--network", "resnet20", "--weights", weights, *GIVEN]
    done = run_cli("import-teacher", *map(str, given), "--out", str(teacher))
    assert done.code == 0, done.err
    assert done.out.startswith("resnet20, 272,474 parameters: ") and "2,000 test images" in done.out
    result = RunFolder(teacher).result()
    assert result["imported"]["file"] == "resnet20.pth" and result["imported"]["mean"] == [0.5] * 3
    accuracy = f"{100 * result['metrics']['top1/test']:.2f} %"
    assert accuracy in done.out and accuracy in run_cli("evaluate", str(teacher)).out

    settings = ["data.train_images=64", "student.stages=3", "loss.at.weight=1"]
    options = [part for each in settings for part in ("--set", each)]
    command = ["distill", "--recipe", "tiny", "--teacher", str(teacher), *options]
    held_out = run_cli(*command, "--out", str(student))
    assert held_out.code == 2 and "Type --set data.holdout=0" in held_out.err
    assert run_cli(*command, "--set", "data.holdout=0", "--out", str(student)).code == 0
    assert RunFolder(student).result()["teacher"]["imported"] == [str(teacher)]
    refused = run_cli("export", str(student), "--format", "project1", "--out", str(tmp_path / "x"))
    assert refused.code == 2 and f"the teacher {teacher} was imported" in refused.err
    assert run_cli("export", str(student), "--format", "safetensors", "--out", str(tmp_path / "y"))
    assert "imported from `resnet20.pth`" in (tmp_path / "y" / "README.md").read_text()
    assert run_cli("report", str(student)).code == 0
    assert "was imported: another program trained" in (student / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "vgg8"], "does not hold the weights of VGG:\n  missing: stem.0.weight"),
        (["--network", "resnet21"], 'teacher.network = "resnet21" (--set) is unknown'),
        (["--network", "resnet20", "--mean", "1,2"], "--mean and --std are three numbers each"),
        (["--network", "resnet20", "--mean", "a,b,c"], "--mean a,b,c is not three numbers"),
        (["--network", "resnet20", "--std", "1,1,0"], "those of --std are above 0"),
        (["--network", "resnet20", "--weights", "nosuch.pth"], "nosuch.pth does not exist"),
    ],
)
def test_wrong_import_writes_nothing(
    run_cli: RunCli, weights: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "teacher"
    given = ["--weights", str(weights), *GIVEN, *options, "--out", str(out)]
    refused = run_cli("import-teacher", *given)
    assert refused.code == 2 and message in refused.err
    assert not out.exists()


def test_normalisation_must_be_known(run_cli: RunCli, weights: Path, tmp_path: Path) -> None:
    given = ["--network", "resnet20", "--weights", str(weights), "--data", "synthetic"]
    refused = run_cli("import-teacher", *given, "--out", str(tmp_path / "teacher"))
    assert refused.code == 2 and "is not known for synthetic.\nType --mean R,G,B" in refused.err
