"""`import-teacher`: a foreign file of weights becomes a teacher, which distils."""

from pathlib import Path

import pytest
import torch

from distill.data.sources import load_data_set
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder
from students.normalize_images import KNOWN
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
    trained = run_cli(*command, "--set", "data.holdout=0", "--out", str(student))
    assert trained.code == 0
    assert f"note: the teacher {teacher} was imported: another program trained" in trained.err
    assert RunFolder(student).result()["teacher"]["imported"] == [str(teacher)]
    refused = run_cli("export", str(student), "--format", "project1", "--out", str(tmp_path / "x"))
    assert refused.code == 2 and f"the teacher {teacher} was imported" in refused.err
    assert run_cli("export", str(student), "--format", "safetensors", "--out", str(tmp_path / "y"))
    assert "imported from `resnet20.pth`" in (tmp_path / "y" / "README.md").read_text()
    assert run_cli("report", str(student)).code == 0
    assert "was imported: another program trained" in (student / "report.html").read_text()


@pytest.mark.long
def test_network_is_recognised_by_its_weights(
    run_cli: RunCli, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "teacher"
    done = run_cli("import-teacher", "--weights", str(weights), *GIVEN, "--out", str(out))
    assert done.code == 0, done.err
    assert f"note: {weights} contains the weights of resnet20\n" in done.err
    assert 'network = "resnet20"' in (out / "recipe.toml").read_text()
    assert (
        f"type python cli.py distill --recipe kd --teacher {out} --data synthetic --set "
        "data.holdout=0" in done.out
    )


def test_weights_of_an_unnamed_network_are_refused(run_cli: RunCli, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3, 4)}, tmp_path / "a.pth")
    given = ["--weights", str(tmp_path / "a.pth"), *GIVEN, "--out", str(tmp_path / "out")]
    refused = run_cli("import-teacher", *given)
    assert refused.code == 2
    assert "contains the weights of none of the networks that have a name" in refused.err
    assert "Type --network with the network: timm/NAME or FILE.py:NAME." in refused.err


def test_weights_without_file_are_one_fault(run_cli: RunCli, tmp_path: Path) -> None:
    given = ["--weights", str(tmp_path / "no.pth"), *GIVEN, "--out", str(tmp_path / "out")]
    refused = run_cli("import-teacher", *given)
    assert refused.code == 2 and refused.err.count("no.pth does not exist") == 1


THREE = "--mean and --std are three numbers each"


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--network", "vgg8"],
            "These are the weights of another network: type --network resnet20",
        ),
        (
            ["--network", "resnet32"],
            "the weights of resnet32 for 10 classes:\n  missing: layer1.3.co",
        ),
        (["--network", "resnet21"], "--network resnet21 is unknown; allowed: "),
        (["--network", "resnet20", "--mean", "1,2"], THREE),
        (["--network", "resnet20", "--mean", "a,b,c"], "--mean a,b,c is not three numbers"),
        (["--network", "resnet20", "--std", "1,1,0"], "those of --std are above 0"),
        (["--network", "resnet20", "--std", "1,1,nan"], THREE),
        (["--network", "resnet20", "--mean", "0.5,0.5,-0.1"], THREE),
        (["--network", "resnet20", "--std", "300,63,66"], "and none is above 1."),
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
    assert "recipes/import" not in refused.err and "stages." not in refused.err
    assert not out.exists()


def test_values_of_bytes_are_divided_in_the_message(
    run_cli: RunCli, weights: Path, tmp_path: Path
) -> None:
    given = ["--network", "resnet20", "--weights", str(weights), "--data", "synthetic"]
    scale = ["--mean", "125.3,123,113.9", "--std", "63,62.1,66.7"]
    refused = run_cli("import-teacher", *given, *scale, "--out", str(tmp_path / "teacher"))
    assert refused.code == 2
    assert (
        "If they are for images in 0..255, divide them by 255: "
        "--mean 0.4914,0.4824,0.4467 --std 0.2471,0.2435,0.2616" in refused.err
    )


def test_all_faults_of_an_import_are_listed(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    given = ["--network", "resnet21", "--weights", str(tmp_path / "no.pth"), "--mean", "1,2"]
    command = ["import-teacher", *given, "--data", str(tmp_path / "no"), "--out", str(tmp_path)]
    refused = run_cli(*command)
    assert refused.code == 2
    for fault in (
        "--network resnet21 is unknown",
        THREE,
        f"{tmp_path} already contains a run.\nChoose another --out.",
        f"{tmp_path / 'no.pth'} does not exist",
        "is neither synthetic, cifar10, cifar100 nor a path that exists",
    ):
        assert fault in refused.err
    assert "--resume" not in refused.err


@pytest.mark.long
def test_other_number_of_classes_is_named(run_cli: RunCli, tmp_path: Path) -> None:
    torch.save(published("resnet20", 100).state_dict(), tmp_path / "a.pth")
    given = ["--weights", str(tmp_path / "a.pth"), *GIVEN, "--out", str(tmp_path / "out")]
    for network in ("resnet20", "resnet32"):
        refused = run_cli("import-teacher", "--network", network, *given)
        assert refused.code == 2
        assert (
            "Its linear classifier has 100 classes, but synthetic has 10: type --data with the "
            "images that it was trained on, such as cifar100." in refused.err
        )
        assert ("type --network resnet20" in refused.err) == (network == "resnet32")


@pytest.mark.long
def test_normalisation_must_be_known(run_cli: RunCli, weights: Path, tmp_path: Path) -> None:
    given = ["--network", "resnet32", "--weights", str(weights), "--data", "synthetic"]
    refused = run_cli("import-teacher", *given, "--out", str(tmp_path / "teacher"))
    assert refused.code == 2 and "trained with are not known for synthetic.\nType" in refused.err
    assert (
        "  CIFAR-100: --mean 0.5071,0.4867,0.4408 --std 0.2675,0.2565,0.2761\n"
        "  ImageNet: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225\n" in refused.err
    )
    assert "type --network resnet20" in refused.err  # this fault is not hidden by the other one


@pytest.mark.long
@pytest.mark.parametrize(("title", "known"), [("CIFAR-10", None), ("CIFAR-100", "cifar100")])
def test_published_images_are_known_at_a_path(
    run_cli: RunCli,
    pets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    title: str,
    known: str | None,
) -> None:
    images = load_data_set.load(str(pets), "train")
    monkeypatch.setitem(load_data_set.GENUINE, images.fingerprint, f"{title}, train split")
    torch.save(published("resnet20", 2).state_dict(), tmp_path / "a.pth")
    given = ["--network", "resnet20", "--weights", str(tmp_path / "a.pth"), "--data", str(pets)]
    done = run_cli("import-teacher", *given, "--out", str(tmp_path / "teacher"))
    assert done.code == 0, done.err
    assert recipes.read(tmp_path / "teacher" / "recipe.toml").data.normalize == known
    mean = RunFolder(tmp_path / "teacher").result()["imported"]["mean"]
    assert mean == list(KNOWN[known or "cifar10"][0])
