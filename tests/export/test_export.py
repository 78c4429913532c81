"""An export as its receiver meets it: files in a folder, a program without this project."""

import ast
import dataclasses
import errno
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from distill.components.build_network import build_network, load_trained
from distill.components.data_pipeline import split_indices
from distill.data.augment.crop_flip import to_float
from distill.data.sources import load_data_set
from distill.errors import Failure, UserError
from distill.evaluation.evaluate_run import evaluate_run
from distill.export import (
    atomic_folder,
    export,
    formats,
    huggingface,
    model_card,
    onnx_float,
    project1,
    torch_export,
)
from distill.export.finished_run import load_finished
from distill.export.formats import NAMES
from distill.export.isolated_grader import Grader
from distill.files.run_json_schemas import fingerprint_of_names
from distill.format import interval_text, percent
from distill.models import checkpoint
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder, file_sha256
from tests.cli.command_line import (
    ALONE,
    REPO,
    SMALL,
    RunCli,
    assert_refused,
    write_batches,
    write_pets,
)
from tests.hostile import NAMES as HOSTILE
from tests.hostile import PAYLOAD

pytestmark = pytest.mark.long

FILES = {
    "project1": {"project1_model.py", "project1_model.pt"},
    "safetensors": {"model.safetensors", "config.json", "README.md"},
    "onnx": {"model.onnx"},
    "torch-export": {"model.pt2"},
    "onnx-int8": {"model-int8.onnx"},
}
FOUR = [f'""";{PAYLOAD};"""', "\\N", "\\u12", 'tri"""ple']  # class names
# The grader, as a course writes it, and the reader of a .pt2: neither knows this project.
ELSEWHERE = """
import json, sys
import numpy as np, torch
folder, test = sys.argv[1:]
sys.path.insert(0, folder)
from project1_model import project1_model

images, labels = (torch.from_numpy(each) for each in np.load(test).values())
images = images.float() / 255
mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
std = torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1)
model = project1_model()
state = torch.load(f"{folder}/project1_model.pt", weights_only=True, map_location="cpu")
model.load_state_dict(state, strict=True)
model.eval()
with torch.no_grad():
    logits = model((images - mean) / std)
    program = torch.export.load(f"{folder}/model.pt2").module()(images)
    one = torch.export.load(f"{folder}/model.pt2").module()(images[:1])
print(json.dumps({
    "parameters": sum(p.numel() for p in model.parameters()),
    "top1": (logits.argmax(1) == labels).double().mean().item(),
    "program_top1": (program.argmax(1) == labels).double().mean().item(),
    "one": list(one.shape),
    "ours": [n for n in sys.modules if n.split(".")[0] in ("distill", "networks", "students")],
}))
"""


@pytest.fixture(scope="session")
def student(distilled) -> RunFolder:
    return distilled[0]


@pytest.fixture(scope="session")
def shipped(student, tmp_path_factory):
    """The student in every format, in one folder, and the report."""
    out = tmp_path_factory.mktemp("export") / "all"
    return out, export.export(student, NAMES, out)


@pytest.fixture(scope="session")
def elsewhere(shipped, tmp_path_factory):
    """What a fresh process in another folder says of the files."""
    test, place = load_data_set.load("synthetic", "test"), tmp_path_factory.mktemp("elsewhere")
    np.savez(place / "test.npz", images=test.images, labels=test.labels)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, shipped[0], place / "test.npz"],
        capture_output=True, text=True, check=True, cwd=place,
    )  # fmt: skip
    return json.loads(done.stdout)


def taught_on(student, tmp_path, source: str) -> RunFolder:
    """The same run, as if its recipe named another source of images."""
    copy = RunFolder(Path(shutil.copytree(student.path, tmp_path / "copy")))
    text = copy.recipe.read_text().replace('source = "synthetic"', f'source = "{source}"')
    copy.recipe.write_text(text)
    return copy


def test_every_format_predicts_as_the_run_does(shipped):
    out, report = shipped
    every = set().union(*FILES.values())

    assert {path.name for path in out.iterdir()} - {"__pycache__"} == every | {"export.json"}
    assert {name: set(known["files"]) for name, known in report["formats"].items()} == FILES
    for name, known in report["formats"].items():
        if name != "onnx-int8":
            assert known["max_logit_difference"] < 1e-4
            assert known["same_predictions"] == 1
    assert report["compared_on"] == "256 held-out images"
    assert (
        report["parameters"] == Grader(out, *sorted(FILES["project1"], reverse=True)).n_parameters
    )


def test_report_is_beside_files_with_their_bytes(shipped):
    out, report = shipped
    kept = json.loads((out / "export.json").read_text())

    assert kept["formats"] == report["formats"]
    assert set(report) - set(kept) == {"out", "run", "data"}
    for known in kept["formats"].values():
        for name, told in known["files"].items():
            assert file_sha256(out / name) == told["sha256"]


def test_the_graders_accuracy_is_that_of_evaluate(elsewhere, student):
    assert elsewhere["ours"] == []
    assert elsewhere["top1"] == evaluate_run(student)["top1"]
    assert elsewhere["parameters"] == student.result()["parameters"] < 5_000_000


def test_a_program_of_torch_runs_without_this_project(elsewhere, student):
    assert elsewhere["program_top1"] == evaluate_run(student)["top1"]
    assert elsewhere["one"] == [1, 10]


def test_no_file_names_this_machine(shipped):
    for path in filter(Path.is_file, shipped[0].iterdir()):
        content = path.read_bytes()
        for place in (str(REPO), str(Path.home()), sys.prefix):
            assert place.encode() not in content, (path.name, place)


def test_files_may_be_read_by_whom_umask_lets(shipped, tmp_path):
    mask = os.umask(0)
    os.umask(mask)
    checkpoint.save_weights(tmp_path / "student.safetensors", {"a": torch.zeros(1)})

    paths = [*filter(Path.is_file, shipped[0].iterdir()), tmp_path / "student.safetensors"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o666 & ~mask}


def test_the_weights_file_depends_on_the_weights_alone(shipped, student, tmp_path):
    copy = taught_on(student, tmp_path, "elsewhere")
    export.export(copy, ["safetensors"], tmp_path / "again")

    first, again = (out / "model.safetensors" for out in (shipped[0], tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


def test_onnx_names_its_ends_and_takes_any_batch(shipped, student):
    out, _ = shipped
    graph = onnx.load(out / "model.onnx").graph
    images = to_float(torch.from_numpy(load_data_set.load("synthetic", "test").images[:3]))

    shapes = {end.name: end.type.tensor_type.shape.dim for end in (*graph.input, *graph.output)}
    assert list(shapes) == ["images", "logits"]
    assert [dim.dim_param or dim.dim_value for dim in shapes["images"]] == ["batch", 3, 32, 32]
    for n in (1, 3):
        with torch.no_grad():
            expected = load_trained(student)(images[:n])
        torch.testing.assert_close(onnx_float.read(out)(images[:n]), expected)


def test_int8_weights_fit_two_products_in_int16(shipped):
    out, report = shipped
    weights = [
        numpy_helper.to_array(each)
        for each in onnx.load(out / "model-int8.onnx").graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4
    ]
    largest = max(int(np.abs(each.astype(int)).max()) for each in weights)
    known = report["formats"]["onnx-int8"]

    assert len(weights) == 6  # the stem, two blocks of two, one skip
    assert largest <= 64
    assert 255 * largest * 2 < 2**15
    assert known["lost"] == pytest.approx(known["float_top1"] - known["top1"])
    assert known["n_test"] == 2000
    assert known["same_predictions_on_test"] > 0.9


def test_int8_is_calibrated_on_training_images(student):
    run = load_finished(student, None, None)
    train, held_out = split_indices(run.recipe, run.train_split)
    seen = {image.tobytes() for image in run.calibration_images().numpy()}

    assert len(seen) == 320  # all that the recipe trains on
    assert seen <= {image.tobytes() for image in run.train_split.images[train]}
    assert not seen & {image.tobytes() for image in run.train_split.images[held_out]}


def test_training_images_are_compared_without_hold_out(student):
    run = load_finished(student, None, None)
    table = run.recipe.data.model_copy(update={"holdout": 0.02})  # 120 of 6,000
    recipe = run.recipe.model_copy(update={"data": table})
    images, what = dataclasses.replace(run, recipe=recipe).comparison_images()
    train, _ = split_indices(recipe, run.train_split)

    assert what == "training images"
    assert np.array_equal(images.numpy(), run.train_split.images[train[:256]])


def test_card_states_figures_and_their_uncertainty(shipped, student):
    text = (shipped[0] / "README.md").read_text()
    run = load_finished(student, None, None)

    for part in (
        f"| accuracy | {percent(run.top1)} |",
        interval_text(run.interval),
        "This is one run.",
        "2,000 test images",
        "import distill.export.timm_registration",
        "Understudy: knowledge distillation for small residual networks",
        "author = {{The Understudy authors}}",
        "not CIFAR-10's",
        "distilled from a WRN-10-",
        " accuracy on the test images",
        "[loss.kd]",
    ):
        assert part in text
    assert "runs = " not in text
    assert "- cifar10" not in text


def test_card_loads_the_network_from_another_folder(shipped, student, tmp_path):
    card = (shipped[0] / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("DIR", str(shipped[0]))
    assert code.count("import distill") == 1 and "pip install -e CHECKOUT" in card
    script = tmp_path / "load.py"
    script.write_text(code + "import torch\nprint(net(torch.full((1, 3, 32, 32), 0.5)).tolist())\n")

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "load.py"], cwd=tmp_path, env={**os.environ, **variables},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = run(PYTHONPATH=str(REPO))
    expected = load_trained(RunFolder(student.path))(torch.full((1, 3, 32, 32), 0.5))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == pytest.approx(expected[0].tolist(), rel=1e-4, abs=1e-5)
    assert "No module named 'distill'" in run(PYTHONPATH="").stderr


def test_card_states_how_teachers_were_combined():
    distilled = ("teacher.draw=one", "teacher.weights=[1, 3]", "teacher.runs=['a', 'b']")
    for role, overrides, expected in (
        ("student", (), None),
        ("student", distilled, '[teacher]\ndraw = "one"\nweights = [1.0, 3.0]\n'),
        ("teacher", distilled, '[teacher]\nnetwork = "wrn"\n'),
    ):
        recipe = recipes.load("tiny", overrides).recipe
        tables = model_card._tables(SimpleNamespace(recipe=recipe, role=role))
        table = re.search(r"\[teacher\]\n(\w.*\n)*", tables)
        assert (table and table[0].startswith(expected)) if expected else table is None
        assert "runs" not in tables


def test_timm_builds_the_student_for_other_classes_too(shipped):
    import timm

    huggingface.load(shipped[0])  # timm knows the name from here on
    net = timm.create_model(f"local-dir:{shipped[0]}", pretrained=True, num_classes=3)

    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert torch.equal(net.stem[0].weight, huggingface.load(shipped[0]).stem[0].weight)
    with pytest.raises(UserError, match="in_chans = 1; the networks of this project take 3"):
        timm.create_model(f"local-dir:{shipped[0]}", in_chans=1)


@pytest.mark.slow
def test_a_teacher_is_exported_in_every_other_format(teacher, tmp_path):
    others = [name for name in NAMES if name != "project1"]
    report = export.export(RunFolder(teacher), others, tmp_path / "out")

    assert list(report["formats"]) == others


@pytest.mark.parametrize(
    "names",
    [
        ["project1", "safetensors"],
        pytest.param(["onnx", "torch-export", "onnx-int8"], marks=pytest.mark.slow),
    ],
)
def test_residual_teacher_is_exported_as_student_is(resnet_teacher, tmp_path, names):
    """Its course's rules ask for a residual network, not for a student."""
    folder, _ = resnet_teacher
    report = export.export(folder, names, tmp_path / "out")

    assert list(report["formats"]) == names
    if "project1" in names:
        net = huggingface.load(tmp_path / "out")
        counts = {sum(p.numel() for p in net.parameters())}
        counts.add(Grader(tmp_path / "out", project1.CODE, project1.WEIGHTS).n_parameters)
        assert counts == {folder.result()["parameters"]}
        assert "[teacher]" in (tmp_path / "out" / "README.md").read_text()


def test_a_teacher_is_no_hand_in(teacher, tmp_path):
    wide = RunFolder(teacher)
    assert export.export(wide, ["safetensors"], tmp_path / "out")["network"] == "WRN-10-1"
    with pytest.raises(UserError, match=f"{teacher} is a teacher, WRN-10-1"):
        export.export(wide, ["project1"], tmp_path / "hand-in")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize(
    "format_",
    [
        huggingface,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (onnx_float, torch_export)),
    ],
    ids=["safetensors", "onnx", "torch-export"],
)
def test_a_teacher_of_timm_is_exported(name, format_, teacher, tmp_path):
    run = load_finished(RunFolder(teacher), None, None)
    table = run.recipe.teacher.model_copy(update={"network": f"timm/{name}"})
    recipe = run.recipe.model_copy(update={"teacher": table})
    torch.manual_seed(0)
    other = dataclasses.replace(run, recipe=recipe, net=build_network(recipe, "teacher", 10).eval())
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = other.net(images)
        format_.write(other, tmp_path)
        torch.testing.assert_close(format_.read(tmp_path)(images), expected)

    if format_ is not huggingface:
        return
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == name
    assert config["pretrained_cfg"]["mean"] == pytest.approx([0.4914, 0.4822, 0.4465])
    assert "import distill" not in (tmp_path / "README.md").read_text()


def test_where_data_is_gone_drawn_images_are_compared(student, tmp_path, run_cli: RunCli):
    copy = taught_on(student, tmp_path, "nowhere")

    result = run_cli(
        "export", copy.path, "--format", "project1", "--out", tmp_path / "out", "--json"
    )
    assert result.code == 0
    told = json.loads(result.out)
    assert told["compared_on"] == "256 synthetic images, as the run's own are missing"
    assert_refused(
        run_cli(
            "export", copy.path, "-f", "project1", "--out", tmp_path / "b", "--data", "nowhere"
        ),
        "data source 'nowhere' is neither",
    )
    assert_refused(
        run_cli("export", copy.path, "-f", "onnx-int8", "--out", tmp_path / "b"),
        "Type --data NAME or --data PATH",
    )
    assert not (tmp_path / "b").exists()


def test_too_many_parameters_are_no_hand_in(student, tmp_path, monkeypatch):
    n = student.result()["parameters"]
    monkeypatch.setattr(project1, "MAX_PARAMETERS", n)
    with pytest.raises(
        UserError, match=rf"has {n:,} parameters; the course requires fewer than {n:,}"
    ):
        export.export(student, ["project1"], tmp_path / "out")

    assert not list(tmp_path.iterdir())


def test_hand_in_renormalises_for_other_training_images(student, tmp_path):
    run = load_finished(student, None, None)
    run.net.normalize.mean.fill_(0.5)
    run.net.normalize.std.fill_(0.25)
    project1.write(run, tmp_path)
    images = torch.rand(3, 3, 32, 32)

    with torch.no_grad():
        torch.testing.assert_close(project1.read(tmp_path)(images), run.net(images))
    text = " ".join((tmp_path / "project1_model.py").read_text().split())
    assert "another mean and std, so its first step renormalises." in text


GRADER = """
import json, sys
import numpy as np, torch
folder, test, mean, std = sys.argv[1:]
sys.path.insert(0, folder)
from project1_model import project1_model

images, labels = (torch.from_numpy(each) for each in np.load(test).values())
mean, std = (torch.tensor(json.loads(each)).view(3, 1, 1) for each in (mean, std))
model = project1_model()
model.load_state_dict(torch.load(f"{folder}/project1_model.pt", weights_only=True))
with torch.no_grad():
    logits = model.eval()((images.float() / 255 - mean) / std)
print((logits.argmax(1) == labels).double().mean().item())
"""


@pytest.mark.parametrize(
    ("typed", "mean", "std", "text"),
    [
        ("none", [0.0] * 3, [1.0] * 3, "in [0, 1], not normalised"),
        ("0.5,0.4,0.3/0.2,0.25,0.5", [0.5, 0.4, 0.3], [0.2, 0.25, 0.5], "mean (0.5, 0.4, 0.3)"),
    ],
)
def test_hand_in_takes_images_normalised_as_typed(
    typed, mean, std, text, student, tmp_path, run_cli: RunCli
):
    out, test = tmp_path / "out", load_data_set.load("synthetic", "test")
    typed = ("-f", "project1", "--normalize", typed)
    done = run_cli("export", student.path, *typed, "--out", out)
    assert done.code == 0, done.err
    assert text in " ".join(done.out.split())
    assert text in " ".join((out / "project1_model.py").read_text().split())
    facts = json.loads((out / "export.json").read_text())["formats"]["project1"]
    assert (facts["mean"], facts["std"]) == (mean, std)
    np.savez(tmp_path / "test.npz", images=test.images, labels=test.labels)
    graded = subprocess.run(
        [sys.executable, "-I", "-c", GRADER, out, tmp_path / "test.npz", str(mean), str(std)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert float(graded.stdout) == evaluate_run(student)["top1"]


def test_cifar10_normalisation_is_the_default(student, tmp_path, run_cli: RunCli):
    for name, typed in (("a", []), ("b", ["--normalize", "cifar10"])):
        out = tmp_path / name
        assert run_cli("export", student.path, "-f", "project1", *typed, "--out", out).code == 0
    files = ("project1_model.py", "project1_model.pt", "export.json")
    assert [(tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files]
    assert "scale" not in (tmp_path / "a" / "project1_model.py").read_text()


@pytest.mark.parametrize(
    "typed",
    ["mean", "0.5/0.25", "1,2,3", "0,0,0/1,1,0", "0,0,0/1,1,nan", "0,0,x/1,1,1", "/", "a/b/c"],
)
def test_other_normalisations_are_refused(typed, student, tmp_path, run_cli: RunCli):
    typed = ("-f", "project1", "--normalize", typed)
    result = run_cli("export", student.path, *typed, "--out", tmp_path / "out")
    found = f"--normalize {typed[-1]} is neither none, cifar10 nor R,G,B/R,G,B"
    assert_refused(result, found, "Type for example --normalize 0.5,0.5,0.5/0.25,", lines=2)
    result = run_cli("export", student.path, "-f", "onnx", "--normalize", "none", "--out", "out")
    assert_refused(result, "--normalize is for --format project1", "add --format project1")


@pytest.mark.parametrize("factor", [2.0, float("nan")])
def test_format_with_other_predictions_is_deleted(factor, student, tmp_path, monkeypatch):
    def read(folder):
        predict = project1.read(folder)
        return lambda images: predict(images) * factor

    broken = SimpleNamespace(IS_FLOAT=True, write=project1.write, read=read)
    monkeypatch.setattr(formats, "load_formats", lambda names: {"project1": broken})
    (tmp_path / "out").mkdir()
    with pytest.raises(Failure, match=r"logits differ by up to .*Its files were deleted"):
        export.export(student, ["project1"], tmp_path / "out")

    assert not list((tmp_path / "out").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_format_that_fails_discards_no_other(teacher, tmp_path, run_cli: RunCli):
    """The hand-in is of a residual network alone."""
    out = tmp_path / "out"
    asked = ["-f", "project1", "-f", "safetensors"]
    result = run_cli("export", teacher, *asked, "--out", out, "--json")

    assert result.code == 1
    assert "1 of 2 formats failed; " in result.err and f"{out} has safetensors.\n" in result.err
    assert "--format project1 exports a student, a ResNet of fewer than 5,000,000" in result.err
    assert {path.name for path in out.iterdir()} == FILES["safetensors"] | {"export.json"}
    assert list(json.loads((out / "export.json").read_text())["formats"]) == ["safetensors"]
    told = json.loads(result.out)
    assert list(told["formats"]) == ["safetensors"] and list(told["failed"]) == ["project1"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Failure("8 bits are too few.\nTake another."), "--format onnx: 8 bits are too few.\n  T"),
        (ValueError("no operator\nhere"), "--format onnx: ValueError: no operator\n  Export it"),
    ],
)
def test_files_of_a_format_that_fails_are_deleted(
    fault, message, student, tmp_path, monkeypatch, run_cli: RunCli
):
    def half(run, folder):
        (folder / "model.onnx").touch()
        (folder / "parts").mkdir()
        raise fault

    broken = SimpleNamespace(IS_FLOAT=True, write=half)
    monkeypatch.setattr(
        formats, "load_formats", lambda names: {"onnx": broken, "project1": project1}
    )
    result = run_cli("export", student.path, "-f", "x", "--out", tmp_path / "out")

    assert result.code == 1 and message in result.err and "Traceback" not in result.err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written - {"__pycache__"} == FILES["project1"] | {"export.json"}


def test_formats_that_all_fail_are_one_message(teacher, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("--format onnx is not for this run")

    broken = SimpleNamespace(IS_FLOAT=True, write=fail)
    monkeypatch.setattr(
        formats, "load_formats", lambda names: {"onnx": broken, "project1": project1}
    )
    with pytest.raises(UserError, match=r"onnx is not for this run\n--format project1 exports"):
        export.export(RunFolder(teacher), ["x"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_nothing_is_a_failure(student, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(project1, "write", full)
    with pytest.raises(Failure, match="out could not be written: No space left on device"):
        export.export(student, ["project1"], tmp_path / "out")

    assert not list(tmp_path.iterdir())


def test_folder_without_permission_needs_no_space(student, tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "parent")

    monkeypatch.setattr(atomic_folder, "_lock", denied)
    with pytest.raises(Failure, match=r"Permission denied \(parent\)\. .*\nChoose another --out"):
        export.export(student, ["project1"], tmp_path / "out")


def test_earlier_export_is_replaced_only_with_replace(student, tmp_path, run_cli: RunCli):
    out = tmp_path / "out"
    asked = ["export", student.path, "--out", out, "--format"]
    assert run_cli(*asked, "safetensors").code == 0

    assert_refused(run_cli(*asked, "project1"), "already contains an export", "--replace")
    assert (out / "model.safetensors").exists()
    assert run_cli(*asked, "project1", "--replace").code == 0
    assert {path.name for path in out.iterdir()} == FILES["project1"] | {"export.json"}

    (out / "__pycache__").mkdir()
    (out / "__pycache__" / "project1_model.cpython-311.pyc").touch()
    assert run_cli(*asked, "project1", "--replace").code == 0

    (out / "report.tex").touch()
    assert_refused(
        run_cli(*asked, "project1", "--replace"), "contains files that no export wrote: report.tex"
    )
    assert_refused(
        run_cli("export", student.path, "--out", student.path, "-f", "onnx", "--replace"),
        "contains files that no export wrote: ",
    )
    assert student.is_finished


def test_export_inside_saved_files_is_refused(tmp_path):
    (tmp_path / "recipe.toml").touch()
    export.check_out(tmp_path / "handin", replace=False)
    with pytest.raises(UserError, match="where the run .* saves and deletes its own files"):
        export.check_out(tmp_path / "last" / "handin", replace=True)


def test_unknown_formats_are_named_with_those_there_are(student, tmp_path, run_cli: RunCli):
    result = run_cli(
        "export", student.path, "-f", "onxx", "-f", "h5", "-f", "onnx", "--out", tmp_path
    )
    assert_refused(result, "--format onxx, h5: unknown format; allowed: ", ", ".join(NAMES))


def test_missing_package_is_named_with_its_command(student, tmp_path, run_cli: RunCli, monkeypatch):
    monkeypatch.delitem(sys.modules, "distill.export.onnx_float")
    monkeypatch.delattr("distill.export.onnx_float")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    result = run_cli("export", student.path, "-f", "onnx", "--out", tmp_path / "out")
    assert_refused(result, "--format onnx needs the package onnxruntime", "--extra export")


def test_a_person_reads_a_line_a_format(shipped):
    lines = export.report_lines(shipped[1])

    assert [name for name in lines if name in NAMES] == list(NAMES)
    assert "std (0.2471, 0.2435, 0.2616)" in lines["to use project1"]
    rounding = r"max \|Δlogit\| (0\.0e\+00|\d\.\de-0[6-9]); same predictions 100\.00 %"
    assert re.search(rounding, lines["project1"])
    assert re.search(r"points (lost|gained) \(McNemar's p = ", lines["onnx-int8"])


def test_pooled_network_is_exported_in_every_format(efficient, tmp_path):
    run = efficient[0]
    report = export.export(run, NAMES, tmp_path / "out")

    for name, known in report["formats"].items():
        assert name == "onnx-int8" or known["max_logit_difference"] < 1e-4
    text = (tmp_path / "out" / "project1_model.py").read_text()
    assert "class PooledConv(nn.Module)" in text and "self.conv1 = nn.Conv2d(3, 24, 2)" in text
    assert report["parameters"] == evaluate_run(run)["parameters"]


def renamed(student: RunFolder, place: Path, recipe: str, network: str, classes: list[str]):
    """A copy of the run, as a stranger may have edited its result.json."""
    copy = RunFolder(Path(shutil.copytree(student.path, place)))
    result = copy.result() | {"recipe": recipe, "network": network, "class_names": classes}
    result["data"]["class_names_fingerprint"] = fingerprint_of_names(classes)
    copy.result_file.write_text(json.dumps(result))
    return copy


def test_result_names_do_not_run_in_hand_in(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f'""";{PAYLOAD};"""', "\\N", "\\u12", 'tri"""ple', "a\n\x1b[31m", "\udcff", *"6789"]
    forged = renamed(student, tmp_path / "forged", names[0], names[0] + "\\", names)
    with pytest.raises(UserError, match="contradicts recipe.toml: its network is"):
        export.export(forged, ["project1"], tmp_path / "forged-out")
    network = student.result()["network"]
    run = renamed(student, tmp_path / "run", names[0], network, names)

    report = export.export(run, ["project1"], tmp_path / "out")

    assert not list(tmp_path.rglob("PWNED"))
    assert report["formats"]["project1"]["same_predictions"] == 1
    result = subprocess.run(
        [sys.executable, "-I", "project1_model.py"],
        check=False,
        cwd=tmp_path / "out",
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.rglob("PWNED"))


def test_every_hostile_name_is_text_in_hand_in(student, tmp_path, monkeypatch):
    run = load_finished(student, None, None)
    for k in range(0, len(HOSTILE), 10):
        ten = (HOSTILE[k:] + HOSTILE)[:10]
        result = run.result | {"class_names": ten, "recipe": ten[0], "network": ten[1]}
        project1.write(dataclasses.replace(run, result=result), tmp_path)
        tree = ast.parse((tmp_path / "project1_model.py").read_text("utf-8"))
        first, *rest = tree.body
        assert isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant), ten
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        assert all(isinstance(each, kinds) for each in rest), ten


@pytest.mark.parametrize("name", [f'""";{PAYLOAD};"""', "\\N", "\\u12", 'tri"""ple'])
def test_class_folder_does_not_run_in_hand_in(name, tmp_path, run_cli: RunCli):
    pets = write_pets(tmp_path / "pets", (name, "dog"))
    run = tmp_path / "run"
    result = run_cli(
        "distill", *SMALL, *ALONE, "--set", "train.epochs=1", "--data", pets, "--out", run
    )
    assert result.code == 0, result.err

    result = run_cli("export", run, "--format", "project1", "--out", "out")

    assert result.code == 0, result.err
    assert not list(tmp_path.rglob("PWNED")) and not list(Path.cwd().rglob("PWNED"))
    compile(Path("out/project1_model.py").read_text(), "project1_model.py", "exec")


def test_label_names_do_not_run_in_hand_in(tmp_path, run_cli: RunCli):
    folder = write_batches(tmp_path)
    names = [f'""";{PAYLOAD};"""', "\\N", "\\u12", 'tri"""ple']
    meta = {"label_names": names, "num_cases_per_batch": 4}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    small = [*ALONE, "--recipe", "tiny", "--set", "data.holdout=0.2", "--set", "train.batch_size=4"]
    small += ["--set", "data.train_images=16"]
    result = run_cli("distill", *small, "--set", "train.epochs=1", "--data", folder, "--out", "run")
    assert result.code == 0, result.err

    result = run_cli("export", "run", "--format", "project1", "--out", "out")

    assert result.code == 0, result.err
    assert not list(tmp_path.rglob("PWNED"))


def test_a_hand_in_that_fails_is_one_message(student, tmp_path):
    run = load_finished(student, None, None)
    project1.write(run, tmp_path)
    (tmp_path / "project1_model.py").write_text("raise ValueError('\x1b[31mred')")
    with pytest.raises(
        Failure, match=r"exit code 1: ValueError: \\x1b\[31mred. Its files were deleted"
    ):
        project1.read(tmp_path)


def test_a_grader_has_no_secret_of_the_environment(student, tmp_path, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "swordfish")
    project1.write(load_finished(student, None, None), tmp_path)
    file = tmp_path / "project1_model.py"
    file.write_text(
        "import os, sys\nassert 'PGPASSWORD' not in os.environ\n"
        "try:\n    import distill\nexcept ImportError:\n    pass\nelse:\n    raise SystemExit(9)\n"
        "assert not [name for name in sys.path if os.path.exists(os.path.join(name, 'distill'))]\n"
        + file.read_text().partition(chr(10) + chr(34) * 3 + chr(10))[2]
    )
    project1.read(tmp_path)


@pytest.mark.parametrize("replace", [False, True])
def test_two_exports_into_one_folder_lose_nothing(replace, student, tmp_path, monkeypatch):
    """The second begins and ends while the first writes."""
    out, report = tmp_path / "out", export._write_formats

    def interrupted(shipped, asked, new):
        monkeypatch.setattr(export, "_write_formats", report)
        export.export(student, ["safetensors"], out)
        return report(shipped, asked, new)

    monkeypatch.setattr(export, "_write_formats", interrupted)
    if replace:
        export.export(student, ["project1"], out, replace=True)
    else:
        with pytest.raises(UserError, match="already contains an export"):
            export.export(student, ["project1"], out)
    files = FILES["project1" if replace else "safetensors"]
    assert {path.name for path in out.iterdir()} == files | {"export.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_several_processes_one_exports(student, tmp_path, run_cli: RunCli, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_cli("export", student.path, "--out", tmp_path / "out", "-f", "safetensors").code == 0
    assert not (tmp_path / "out").exists()


def test_folder_of_a_killed_export_is_deleted(tmp_path):
    for use in ("new", "old"):
        atomic_folder._create(tmp_path / "out", use)
    with atomic_folder.temporary_folder_beside(tmp_path / "out") as in_use:
        atomic_folder._create(tmp_path / "out", "new")
        with atomic_folder.temporary_folder_beside(tmp_path / "out") as new:
            assert set(tmp_path.iterdir()) == {in_use, new}
    assert not list(tmp_path.iterdir())


def test_export_killed_between_renames_is_restored(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").touch()
    new = atomic_folder._create(out, "new")

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        atomic_folder.rename(new, out, lambda: None)
    assert not out.exists()
    with pytest.raises(ValueError, match="fails"), atomic_folder.temporary_folder_beside(out):
        raise ValueError("fails")
    assert (out / "earlier").exists() and list(tmp_path.iterdir()) == [out]


def test_restored_export_is_replaced_only_with_replace(student, tmp_path, monkeypatch):
    out, old = tmp_path / "out", atomic_folder._create(tmp_path / "out", "old")
    export.export(student, ["safetensors"], old / "out")
    monkeypatch.setattr(export, "_write_formats", None)  # refused before anything is written
    with pytest.raises(UserError, match="already contains an export"):
        export.export(student, ["safetensors"], out)
    assert (out / "export.json").exists() and list(tmp_path.iterdir()) == [out]


def test_locked_parent_folder_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_folder, "BUSY_S", 0.1)
    with (
        atomic_folder.locked(tmp_path),
        pytest.raises(Failure, match=r"is locked: another process .*\nEnd that process \(fuser "),
        atomic_folder.temporary_folder_beside(tmp_path / "out"),
    ):
        pass


def test_folders_of_the_user_beside_an_export_remain(tmp_path):
    out = tmp_path / "out"
    names = [".out.old", ".out.new-idea", ".out.new-0123456789ab", ".out.old-0123456789ab"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    for _ in range(2):  # the second replaces the first
        with atomic_folder.temporary_folder_beside(out) as new:
            (new / "file").touch()
            atomic_folder.rename(new, out, lambda: None)
    assert {path.name for path in tmp_path.iterdir()} == {"out", *names}
    assert all((tmp_path / name / "mine.txt").read_text() == "mine" for name in names)
    assert [path.name for path in out.iterdir()] == ["file"]


def test_file_of_the_user_beside_an_export_remains(tmp_path):
    out, mine = tmp_path / "out", tmp_path / ".out.old"
    mine.write_text("mine")
    for _ in range(2):
        with atomic_folder.temporary_folder_beside(out) as new:
            atomic_folder.rename(new, out, lambda: None)
    assert mine.read_text() == "mine" and {path.name for path in tmp_path.iterdir()} == {
        "out",
        ".out.old",
    }


def test_failed_rename_restores_the_earlier_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").touch()
    with atomic_folder.temporary_folder_beside(out) as new:
        shutil.rmtree(new)
        with pytest.raises(OSError, match="No such file"):
            atomic_folder.rename(new, out, lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "earlier").exists()


def test_export_through_a_link_replaces_its_target(student, tmp_path):
    out, target = tmp_path / "link", tmp_path / "disk" / "target"
    target.mkdir(parents=True)
    out.symlink_to(target)
    for replace in (False, True, True):
        export.export(student, ["safetensors"], out, replace=replace)
    assert out.is_symlink() and (target / "export.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"link", "disk"}
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_replace_deletes_only_unchanged_files_of_an_export(student, tmp_path):
    """Its export.json may name any file, and be another program's."""
    out = tmp_path / "out"
    export.export(student, ["safetensors"], out)
    report = json.loads((out / "export.json").read_text())
    for name in ("notes.txt", "config.json"):
        (out / name).write_text("mine")
    report["formats"]["safetensors"]["files"]["notes.txt"] = {"bytes": 4, "sha256": "0" * 64}
    (out / "export.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"files that no export wrote: config\.json, notes\.txt"):
        export.export(student, ["project1"], out, replace=True)
    assert (out / "notes.txt").read_text() == (out / "config.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("n_files", "size", "n_bytes"), [(1, 2**43, 8), (1, 2**43, 2**43), (9, 2**30, 2**30)]
)
def test_sparse_files_in_export_are_not_hashed(n_files, size, n_bytes, tmp_path, monkeypatch):
    """Its export.json, which another program wrote, may have the right sizes."""
    names = [f"model{k}.onnx" for k in range(n_files)]
    facts = {name: {"bytes": n_bytes, "sha256": "0" * 64} for name in names}
    (tmp_path / "export.json").write_text(json.dumps({"formats": {"onnx": {"files": facts}}}))
    for name in names:
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    monkeypatch.setattr(export, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(UserError, match=r"files that no export wrote: model0\.onnx"):
        export.check_out(tmp_path, replace=True)


def test_infinite_size_in_export_json_is_no_file(tmp_path):
    (tmp_path / "export.json").write_text(
        '{"formats": {"onnx": {"files": {"a": {"bytes": 1e999, "sha256": "0"}}}}}'
    )
    with pytest.raises(UserError, match=r"files that no export wrote: export\.json"):
        export.check_out(tmp_path, replace=True)


@pytest.mark.parametrize("name", ["__pycache__/mine.txt", "sub/__pycache__/a.pyc"])
def test_replace_deletes_no_other_file_in_pycache(name, student, tmp_path):
    out = tmp_path / "out"
    export.export(student, ["safetensors"], out)
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=re.escape(f"files that no export wrote: {name}")):
        export.export(student, ["project1"], out, replace=True)
    assert (out / name).read_text() == "mine"
