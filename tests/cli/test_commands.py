"""The door as a person meets it: exit codes, messages, what goes to which stream."""

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli
from distill.cli.train_commands import resolve
from distill.data.sources import image_set
from distill.data.sources.cifar import CIFAR10
from distill.recipe import recipes
from distill.runs.journal import Journal, read
from distill.runs.run_folder import RunFolder
from distill.sweep import plan
from distill.sweep.candidates import Candidate, training
from distill.training import loop
from students.design import Design

REPO = Path(__file__).parents[2]
ALONE = ["--set", "loss.kd=false", "--set", "loss.hard.weight=1"]
SMALL = [
    "--recipe", "tiny", "--set", "data.holdout=0.25", "--set", "data.train_images=24",
    "--set", "train.batch_size=8", "--set", "train.epochs=2",
]  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What one command said, and how it ended."""

    code: int
    out: str
    err: str


Door = Callable[..., Said]


@pytest.fixture
def door(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Door:
    """`python cli.py …` in this process, in an empty folder, with an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")

    def knock(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int)
        return Said(code, *capsys.readouterr())

    return knock


def process(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`python cli.py …` for real."""
    return subprocess.Popen(
        [sys.executable, str(REPO / "cli.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def refused(said: Said, *found: str, lines: int | None = None) -> None:
    """One message on stderr that holds every text of `found`, nothing on stdout, exit 2."""
    assert said.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    for text in found:
        assert said.err.count(text) == 1, (text, said.err)
    assert lines is None or len(said.err.splitlines()) == lines, said.err


def at_each_epoch(patched: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Call `act` once the journal of a run in this process has the end of an epoch."""
    write = Journal.__call__

    def write_and_act(journal: Journal, event: object) -> None:
        write(journal, event)  # type: ignore[arg-type]
        if type(event).__name__ == "Epoch":
            act()

    patched.setattr(Journal, "__call__", write_and_act)


def write_pets(root: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A set of noise in class folders: 16 images a class to train on, 8 to test."""
    pixels = np.random.default_rng(0)
    for split, n in (("train", 16), ("test", 8)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                array = pixels.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / f"{i}.png")
    return root


def write_batches(root: Path) -> Path:
    """The official layout with four images a file."""
    folder = root / CIFAR10.folder
    folder.mkdir(parents=True)
    names = [f"class {i}" for i in range(4)]
    meta = {"label_names": names, "num_cases_per_batch": 4}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    for k, name in enumerate((*CIFAR10.files["train"], "test_batch")):
        data = np.full((4, 3072), k, dtype=np.uint8)
        batch = {"data": data, "labels": list(range(4))}
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_pets(tmp_path / "pets")


# What the recipe alone decides


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--recipe", "kd_cutmx"], "recipe 'kd_cutmx' is not in recipes/; did you mean kd_cutmix?"),
        (["--recipe", "/tmp"], "/tmp is not a recipe file: its path must end in .toml"),
        (["--recipe", "kd+ema2"], "recipe 'ema2' is not in recipes/; did you mean ema?"),
        (["--recipe", "mine.toml"], "mine.toml does not exist"),
        (
            ["--set", "optim.lrr=0.3"],
            "optim.lrr = 0.3 (--set) is not a key; did you mean optim.lr?",
        ),
        (["--set", "optim.lr=fast"], 'optim.lr = "fast" (--set) is text; allowed: a number'),
        (["--set", "train.epochs=0"], "train.epochs = 0 (--set) is out of range"),
        (["--set", "optim.lr"], "--set optim.lr has no value; type key=value"),
        (["--set", "=3"], "--set =3 has no key: '' is not one"),
        (["--set", "student.blocks=[1,"], "is malformed: [1, is not a TOML value"),
        (["--recipe", "teacher_wrn"], "student is missing; distill needs a [student] table"),
    ],
)
def test_wrong_recipe_is_refused(door: Door, arguments: list[str], found: str) -> None:
    refused(door("distill", *arguments), found, lines=2)


def test_five_faults_are_five_lines(door: Door) -> None:
    wrong = ["optim.lrr=1", "train.epochs=0", "mix.cutmix.prob=2", "loss.kd.weight=a", "colour=3"]
    said = door("distill", *(word for each in wrong for word in ("--set", each)))
    keys = (each.split("=")[0] for each in wrong)
    refused(said, "5 faults in kd_cutmix", *(f"\n  {key} = " for key in keys), lines=6)


def test_student_over_budget_is_refused_with_width_that_fits(door: Door) -> None:
    said = door("distill", "--recipe", "kd", "--set", "student.width=128")
    ours, fits, too_wide = (
        Design.of(stages=3, blocks=[4, 4, 3], width=width).parameters for width in (128, 66, 67)
    )
    assert fits < 5_000_000 <= too_wide
    excess = f"{ours - 4_999_999:,} too many for fewer than 5,000,000"
    refused(said, f"has {ours:,} parameters, {excess}", "the widest that fits is width = 66")


def test_train_teacher_refuses_losses_with_a_teacher(door: Door) -> None:
    refused(door("train-teacher", "--recipe", "tiny"), "type --set loss.kd=false", lines=2)


@pytest.mark.parametrize("arguments", [["params", "--recipe"], ["recipes"]])
def test_unknown_recipe_is_refused_by_every_command(door: Door, arguments: list[str]) -> None:
    refused(door(*arguments, "kdd"), "recipe 'kdd' is not in recipes/; did you mean kd?", lines=2)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["distil"], "distil"),
        (["distill", "--recip", "kd"], "--recip"),
        (["evaluate"], "RUN"),
    ],
)
def test_misspelt_command_or_option_is_refused(
    door: Door, arguments: list[str], found: str
) -> None:
    said = door(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert found in said.err
    assert "Traceback" not in said.err


def test_options_may_be_repeated(door: Door) -> None:
    said = door("recipes", "tiny", "--set", "optim.lr=0.3", "--set", "teacher.runs=['a', 'b']")
    assert re.search(r"^lr = 0.3 +# --set$", said.out, re.MULTILINE)
    assert re.search(r'^runs = \["a", "b"\] +# --set$', said.out, re.MULTILINE)
    both = resolve("tiny", None, [], ["a", "b"]).recipe
    assert both.teacher is not None
    assert both.teacher.runs == ("a", "b")


@pytest.mark.parametrize("path", ['a "b"', "it's", r"c:\new", "🐈/Müller", "a = [b] # c", "x\ty"])
def test_any_path_is_passed_unchanged(path: str) -> None:
    recipe = resolve("tiny", path, [], [path, f"{path}2"]).recipe
    assert recipe.data.source == path
    assert recipe.teacher is not None
    assert recipe.teacher.runs == (path, f"{path}2")
    assert recipes.loads(recipes.dumps(recipe), "a run") == recipe


def test_set_wins_over_the_options_of_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["data.source=b", "teacher={runs=['t']}", "optim.lr=0.3"]
    recipe = resolve("tiny", "a", overrides, ["s"]).recipe
    assert recipe.data.source == "b"
    assert recipe.teacher is not None and recipe.teacher.runs == ("t",)
    assert capsys.readouterr().err.splitlines() == [
        "note: --set data.source=b overrides --data, which is not used",
        "note: --set teacher={runs=['t']} overrides --teacher, which is not used",
    ]
    assert resolve("tiny", "a", ["optim.lr=0.3"], None).recipe.data.source == "a"
    assert capsys.readouterr().err == ""


# What the images decide


def test_missing_images_are_refused(door: Door) -> None:
    refused(door("distill", *SMALL, *ALONE, "--data", "nowhere"), "data source 'nowhere' is nei")
    refused(door("distill", *SMALL, *ALONE, "--data", "cifar10"), "CIFAR-10 is in none of these")
    refused(door("data", "info", "nowhere"), "data source 'nowhere' is neither")
    assert list(Path().iterdir()) == [], "a refused run must leave nothing behind"


def test_truncated_batch_file_is_named(door: Door, tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "set")
    whole = (folder / "data_batch_3").read_bytes()
    (folder / "data_batch_3").write_bytes(whole[:6000])
    found = "data_batch_3: truncated, 6,000 bytes, while its images need 12,288"
    refused(door("distill", *SMALL, *ALONE, "--data", folder), f"1 fault in {folder}", found)


def test_one_unreadable_image_is_named(door: Door, pets: Path) -> None:
    (pets / "train" / "dog" / "7.png").write_bytes(b"no image")
    said = door("distill", *SMALL, *ALONE, "--data", pets)
    refused(said, f"1 fault in {pets}", "train/dog/7.png: unreadable")


# Where the run shall lie


def test_existing_run_folder_is_refused(door: Door, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").touch()
    said = door("distill", *SMALL, *ALONE, "--out", tmp_path / "run")
    refused(said, f"{tmp_path / 'run'} already holds a run.\nContinue it with --resume", lines=2)


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_file_is_refused_as_run_folder(door: Door, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    said = door("distill", *SMALL, *ALONE, "--out", tmp_path / out)
    file = tmp_path / "file"
    refused(said, f"{tmp_path / out} cannot be a run folder: {file} is a file.", lines=2)


@pytest.mark.skipif(sys.platform != "linux", reason="nobody, not even root, writes in /proc")
def test_unwritable_folder_is_refused(door: Door) -> None:
    said = door("distill", *SMALL, *ALONE, "--out", "/proc/run")
    refused(said, "/proc/run cannot be a run folder: nothing can be written in /proc (", lines=2)


# Who teaches


def test_missing_teacher_is_refused_with_advice(door: Door, pets: Path) -> None:
    said = door("distill", *SMALL, "--data", pets)
    refused(said, "none was named", "runs/", "train-teacher --recipe tiny --set loss.kd=")


def test_teacher_of_other_classes_is_refused(door: Door, teacher: Path, pets: Path) -> None:
    said = door("distill", *SMALL, "--data", pets, "--teacher", teacher)
    refused(said, f"teacher {teacher} has 10 classes, the data has 2")


def test_every_unsuitable_teacher_is_named(
    door: Door, teacher: Path, pets: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "bare")
    (tmp_path / "bare" / "teacher.safetensors").unlink()
    both = ["--teacher", tmp_path / "bare", "--teacher", teacher]
    said = door("distill", *SMALL, "--data", pets, *both)
    refused(said, f"{tmp_path / 'bare'} has no teacher.safetensors", "has 10 classes")
    said = door("distill", *SMALL, "--data", pets, "--teacher", "runs/none")
    refused(said, "runs/none is not a run: there is no such folder")


# What is measured


def test_evaluate_needs_a_finished_run(door: Door, tmp_path: Path) -> None:
    refused(door("evaluate", tmp_path / "none"), f"{tmp_path / 'none'} is not a run", lines=2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").touch()
    said = door("evaluate", tmp_path / "run")
    refused(said, f"run {tmp_path / 'run'} is not finished: it has no result.json", lines=2)


def test_evaluate_json_matches_the_run(door: Door, taught) -> None:
    folder, _ = taught
    said = door("evaluate", folder.path, "--json")
    values, result = json.loads(said.out), folder.result()
    assert said.code == 0
    assert {"top1", "nll", "ece", "n"} <= values.keys()
    assert values["n"] == 2000
    assert values["parameters"] == result["parameters"]
    assert values["top1"] == result["metrics"]["top1/test"]


def test_evaluate_prints_accuracy_and_each_class(door: Door, taught) -> None:
    folder, _ = taught
    said = door("evaluate", folder.path)
    top1 = folder.result()["metrics"]["top1/test"]
    assert re.search(rf"^accuracy +{100 * top1:.2f} % +[\d.]+ – [\d.]+ % *$", said.out, re.M)
    for name in folder.result()["class_names"]:
        assert re.search(rf"^{name} +200 ", said.out, re.M), name


def test_evaluate_refuses_before_it_measures(door: Door, taught, tmp_path: Path) -> None:
    run = taught[0].path
    said = door("evaluate", run, "--against", tmp_path / "none")
    refused(said, f"{tmp_path / 'none'} is not a run", lines=2)
    for views in (1, 3, 7):
        refused(
            door("evaluate", run, "--views", views),
            f"--views {views} is not supported; "
            "allowed: 2 (each image and its mirror image, as --mirror) or 6",
            lines=2,
        )
    said = door("evaluate", run, "--robustness-images", 10)
    refused(said, "--robustness-images 10", "type --robustness with it", lines=1)


def test_params_as_json(door: Door) -> None:
    said = door("params", "--recipe", "kd", "--json")
    counted = json.loads(said.out)
    assert said.code == 0
    assert counted["parameters"] == 4_697_162  # reference count of [4, 4, 3] 64-128-256
    assert counted["macs"] == 798_689_792
    assert counted["trainable"] == counted["parameters"]
    whole, part = (
        json.loads(door("params", "--recipe", "kd", *more, "--json").out)
        for more in ([], ["-s", "student.stem_frozen=true"])
    )
    assert part == whole | {"trainable": whole["parameters"] - 3 * 9 * 64}
    assert counted["max_params"] == 5_000_000
    assert counted["within_budget"] is True


def test_params_reports_what_is_over_budget(door: Door) -> None:
    said = door("params", "-r", "kd", "-s", "student.width=128", "--json")
    assert said.code == 0
    assert json.loads(said.out)["within_budget"] is False
    said = door("params", "-r", "kd", "-s", "student.width=128")
    assert re.search(
        r"^parameters +18,765,962\ntrainable +18,765,962\nmacs +3,191,215,104$",
        said.out,
        re.MULTILINE,
    )
    assert re.search(r"^within_budget +no$", said.out, re.MULTILINE)


def test_a_printed_recipe_is_a_recipe(door: Door, tmp_path: Path) -> None:
    spec = "kd_cutmix+quickstart"
    said = door("recipes", spec, "--set", "data.source=🐈 \\ 'x'")
    (tmp_path / "again.toml").write_text(said.out, encoding="utf-8")
    again = recipes.load(str(tmp_path / "again.toml")).recipe
    assert again == recipes.load(spec, ["data.source=🐈 \\ 'x'"]).recipe
    assert door("recipes", tmp_path / "again.toml").code == 0


def test_the_listing_names_every_recipe(door: Door) -> None:
    said = door("recipes")
    first_words = [line.split(" ")[0] for line in said.out.splitlines()]
    assert said.code == 0
    for name, _, _ in recipes.shipped():
        assert first_words.count(name) == 1, name


# What a set holds


def test_info_counts_and_names(door: Door, pets: Path) -> None:
    said = door("data", "info", pets, "--json")
    facts = json.loads(said.out)
    assert said.code == 0
    assert (facts["train_images"], facts["test_images"], facts["classes"]) == (32, 16, 2)
    assert facts["class_names"] == ["cat", "dog"]
    assert facts["train_fingerprint"] == image_set.load(str(pets), "train").fingerprint
    assert facts["genuine"] == "no"
    assert facts["faults"] == []
    said = door("data", "info", "--data", pets)
    assert re.search(r"^class_names +cat, dog$", said.out, re.MULTILINE)


def test_info_knows_the_genuine_images(
    door: Door, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = (image_set.load(str(pets), split).fingerprint for split in ("train", "test"))
    monkeypatch.setattr(
        image_set, "GENUINE", {train: "PETS, train split", test: "PETS, test split"}
    )
    assert image_set.info(str(pets))["genuine"] == "PETS, train split; PETS, test split"
    monkeypatch.setattr(image_set, "GENUINE", {train: "PETS, train split"})
    assert image_set.info(str(pets))["genuine"] == "PETS, train split; test: no"


def test_info_describes_an_incomplete_set(door: Door, pets: Path) -> None:
    shutil.rmtree(pets / "test")
    said = door("data", "info", pets, "--json")
    facts = json.loads(said.out)
    assert (said.code, facts["train_images"]) == (2, 32)
    assert "test_images" not in facts
    (fault,) = facts["faults"]
    assert fault.startswith(f"1 fault in {pets}:\n  test/: missing")
    assert said.err.endswith(f"\n{fault}\n")
    assert "Traceback" not in said.err


def test_info_of_unreadable_set_is_refused(door: Door, tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "set")
    (folder / "batches.meta").unlink()
    said = door("data", "info", folder)
    assert said.err.count("batches.meta: missing") == 1
    refused(said, f"1 fault in {folder}")


# Whole runs


def test_train_distill_evaluate_and_resume(door: Door, tmp_path: Path) -> None:
    data = write_pets(tmp_path / 'it\'s "my" 🐈')
    said = door("train-teacher", *SMALL, *ALONE, "--data", data, "--out", "runs/teacher")
    assert said.code == 0
    assert "teacher" in said.out
    assert "epoch 2/2" in said.err
    assert door("distill", *SMALL, *ALONE, "--data", data, "--out", "runs/alone").code == 0

    taught = door(
        "distill", *SMALL, "--data", data
    )  # the teacher that is there, a folder of its own
    assert taught.code == 0
    (run,) = (path for path in Path("runs").iterdir() if path.name.startswith("tiny-"))
    assert re.search(r"^teacher +runs/teacher, ", taught.err, re.MULTILINE)
    assert re.search(rf"^run +{run}$", taught.err, re.MULTILINE)
    assert recipes.read(run / "recipe.toml").data.source == str(data)
    rows = re.findall(r"^(\S.*?)  ", taught.out, re.MULTILINE)
    assert rows == ["teacher", "alone", "distilled"]
    kinds = [row["event"] for row in read(RunFolder(run).journal)]
    assert kinds == ["start", *[*["step"] * 3, "epoch"] * 2, "end"]

    measured = json.loads(door("evaluate", run, "--json").out)
    assert (measured["n"], measured["data"]) == (16, str(data))
    again = door("distill", *SMALL, "--data", data, "--out", run, "--resume")
    assert again.code == 0 and "distilled" in again.out
    other = ["--resume", "--set", "optim.lr=0.5"]
    changed = door("distill", *SMALL, "--data", data, "--out", run, *other)
    assert changed.code == 2 and re.search(r"optim.lr: .* -> 0.5", changed.err)
    assert again.err == f"{run} is finished: nothing to do.\n"


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 143)],
)
def test_a_stopped_run_says_how_to_go_on(
    door: Door, pets: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(number)
    command = ["distill", *SMALL, *ALONE, "--data", str(pets)]
    with monkeypatch.context() as patched:
        at_each_epoch(patched, lambda: os.kill(os.getpid(), number))
        said = door(*command)
    assert (said.code, said.out) == (code, "")
    assert "Traceback" not in said.err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(number)) == handlers

    with monkeypatch.context() as patched:
        at_each_epoch(patched, lambda: os.kill(os.getpid(), number))
        several = door("seeds", *SMALL, *ALONE, "--data", pets, "--n", 2, "--out", "s")
    assert several.code == code
    again = "Stopped after step 4, and saved. To continue, type the same command again"
    assert several.err.splitlines()[-1] == again

    (run,) = Path("runs").iterdir()
    advice = said.err.splitlines()[-1]
    assert advice == (
        "Stopped after step 4, and saved. To continue, type the same command with "
        f"--out {run} --resume"
    )
    resumed = door(*command, *shlex.split(advice.split("with ")[-1]))
    assert resumed.code == 0
    assert re.search(r"^resumed +at step 4$", resumed.err, re.MULTILINE)
    assert RunFolder(run).is_finished


def test_hangup_ignored_by_nohup_is_ignored(
    door: Door, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_each_epoch(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        said = door("distill", *SMALL, *ALONE, "--data", pets, "--out", "runs/x")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert said.code == 0, said.err
    assert RunFolder(Path("runs/x")).is_finished


def test_note_says_that_a_part_replaces_the_network(door: Door, pets: Path) -> None:
    Path("mine.toml").write_text("[student]\nwidth = 5\n[teacher]\nwiden = 2\n")
    said = door("distill", *SMALL, "--recipe", "tiny+mine.toml", *ALONE, "--data", pets)
    assert said.code == 0, said.err
    notes = re.findall(r"^note: (.* replaces .*)$", said.err, re.MULTILINE)
    assert notes == [
        "mine replaces the network of tiny: ResNet [1, 1] 4-8 -> ResNet [1, 1] 5-10"
    ], "a student's run does not train the teacher"
    said = door("recipes", "fast_teacher+two_cores")
    assert said.err == (
        "note: two_cores replaces the network of fast_teacher: ResNet [1, 1, 1] 128-384-512 pooled "
        "-> WRN-16-2\n"
    )


def test_note_says_what_has_no_effect(door: Door, pets: Path) -> None:
    idle = ["loss.hard.weight=0", "loss.hard.label_smoothing=0.1", "loss.kd.weight=0"]
    more = [*idle, "loss.mse={}", "train.validate_both=true", "loss.at=false"]
    sets = [word for each in more for word in ("--set", each)]
    assert door("train-teacher", *SMALL, *ALONE, "--data", pets, "--out", "runs/t").code == 0
    said = door("distill", *SMALL, *sets, "--data", pets)
    assert said.code == 0, said.err
    notes = re.findall(r"^note: (.*)$", said.err, re.MULTILINE)
    assert [note for note in notes if "no effect" in note or "nothing" in note] == [
        "--set loss.at=false removes nothing: the terms of the recipe are hard, kd, mse",
        "loss.hard.label_smoothing = 0.1 has no effect: loss.hard.weight is 0; type "
        "--set loss.hard.weight=1 to train on labels",
        "train.validate_both = true has no effect: the recipe has no [ema], so there is one "
        "network to measure; type --set ema={} for averaged weights",
    ]


def test_a_diverged_run_fails_with_one_message(door: Door, pets: Path) -> None:
    wild = ["--set", "optim.lr=1e30"]
    said = door("distill", *SMALL, *ALONE, *wild, "--data", pets, "--out", "runs/x")
    assert (said.code, said.out) == (1, "")
    assert "Traceback" not in said.err
    happened, look, advice = said.err.splitlines()[-3:]
    assert happened == "The run in runs/x failed: the loss or its gradient is not finite in step 2."
    assert look == "To repeat that step: python cli.py replay runs/x --step 2"
    assert "--set optim.clip=1" in advice and "--set train.retries=3" in advice
    again = door("replay", "runs/x", "--step", 2, "--json")
    assert again.code == 0 and not json.loads(again.out)["is_finite"]


def test_a_device_without_enough_memory_is_one_message(
    door: Door, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said by whichever process it befell."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "__stderr__", told := StringIO())

    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(loop, "step", fill)
    said = door("distill", *SMALL, *ALONE, "--data", pets, "--out", "runs/x")
    assert (said.code, said.out) == (1, "")
    full = "the device's memory is full: CUDA out of memory. Tried to allocate 9 GiB.\n"
    assert full in told.getvalue()
    assert "--set train.accumulate=2, the same batch in smaller parts" in told.getvalue()


def allocate_too_much(*_: object) -> None:
    torch.empty(10**14)


def too_large_for_numpy(*_: object) -> None:
    raise MemoryError("Unable to allocate 7.11 PiB for an array with shape (1000000000000000,)")


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (allocate_too_much, "the host's memory is full: 400000.0 GB more could not be allocated"),
        (too_large_for_numpy, "the host's memory is full: Unable to allocate 7.11 PiB for an"),
    ],
)
def test_a_host_without_enough_memory_is_one_message(
    door: Door,
    pets: Path,
    monkeypatch: pytest.MonkeyPatch,
    fill: Callable[..., None],
    told: str,
) -> None:
    """On a CPU torch raises a bare RuntimeError."""
    monkeypatch.setattr(sys, "__stderr__", stderr := StringIO())
    monkeypatch.setattr(loop, "step", fill)
    said = door("distill", *SMALL, *ALONE, "--data", pets, "--out", "runs/x")
    assert (said.code, said.out) == (1, "")
    assert f"The run in runs/x failed: {told}" in stderr.getvalue()
    assert "A step has 8 images (train.batch_size). " in stderr.getvalue()
    assert "--set train.accumulate=2, the same batch in smaller parts" in stderr.getvalue()
    assert "Traceback" not in said.err + stderr.getvalue()


def test_unexpected_error_has_its_traceback(
    door: Door, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burn(*_: object) -> None:
        raise ZeroDivisionError("one over zero")

    monkeypatch.setattr(Journal, "__call__", burn)
    with pytest.raises(ZeroDivisionError, match="one over zero"):
        door("distill", *SMALL, *ALONE, "--data", pets)


def test_only_the_first_process_prints(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["recipes", "nothing"], ["distil"], ["recipes"]):
        monkeypatch.setenv("RANK", "0")
        first = door(*arguments)
        monkeypatch.setenv("RANK", "1")
        second = door(*arguments)
        assert first.code == second.code
        assert first.out + first.err != ""
        assert second.out + second.err == ""


# Real processes: what is imported, how long it takes, how a signal ends it

HEAVY = ("torch", "numpy", "timm", "accelerate", "PIL")
WATCHED = f"""
import atexit, sys, time
began = time.perf_counter()
sys.path.insert(0, {str(REPO)!r})

@atexit.register
def tell():
    heavy = [name for name in {HEAVY} if name in sys.modules]
    print("HEAVY", heavy, "SECONDS", time.perf_counter() - began, file=sys.stderr)

import cli
cli.main()
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["recipes"], 0),
        (["recipes", "kd_cutmix+quickstart"], 0),
        (["params"], 0),
        (["distill", "--set", "student.width=128"], 2),
        (["distill", "--set", "optim.lrr=1"], 2),
        (["evaluate", "runs/none"], 2),
    ],
)
def test_light_commands_import_no_torch(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert "HEAVY [] SECONDS" in done.stderr, done.stderr


def test_help_is_fast() -> None:
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", WATCHED, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "train-teacher" in done.stdout
        seconds.append(float(done.stderr.split()[-1]))
    assert min(seconds) < 0.7


def test_help_shows_text_in_brackets(door: Door) -> None:
    said = door("distill", "--help")
    assert "the best on held-out images" in re.sub(r"[\s│]+", " ", said.out)
    assert "runs/<recipe>-<time>" in said.out


def test_the_widest_designs_are_listed_as_json_and_drawn(door: Door, tmp_path: Path) -> None:
    said = door(
        "design", "--stages", "3", "--blocks", "1-2", "--json", "--plot", tmp_path / "p.svg"
    )
    rows = json.loads(said.out)
    assert [(row["stages"], row["blocks"], row["width"]) for row in rows] == [
        (3, 1, 129),
        (3, 2, 85),
    ]
    assert "3 stages" in (tmp_path / "p.svg").read_text()
    at_most = door("design", "--max-params", rows[0]["parameters"], "--stages", 3, "--blocks", 1,
                   "--rules", "nyu2025", "--json")  # fmt: skip
    assert json.loads(at_most.out)[0]["width"] == 129
    assert "85" in door("design", "--stages", 3).out
    asked = ("design", "--stages", 3, "--blocks", "0-1", "--asymmetric")
    pooled = door(*asked, "--downsample", "pool", "--json")
    assert {"stages": 3, "blocks": [1, 0, 1], "width": 110} in [
        {key: row[key] for key in ("stages", "blocks", "width")} for row in json.loads(pooled.out)
    ]
    refused(
        door("design", "--blocks", "0-1"), "--blocks 0-1 is not a range of numbers of at least 1"
    )


@pytest.fixture
def one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan chooses from one recipe, seconds of a small network."""
    sets = ("student.width=4", "train.epochs=2", "data.train_images=1000")
    small = training("student", "student_alone+two_cores", sets)
    about = recipes.About(measured_accuracy=41.5, seeds=2)
    monkeypatch.setattr(plan, "candidates", lambda: iter([Candidate(about, small, None)]))


def test_a_plan_as_a_table_and_as_json(door: Door, one_recipe: None) -> None:
    said = door("plan", "--minutes", 100)
    assert said.code == 0 and said.err == ""
    assert "1 recipe fits into 100 minutes on" in said.out
    assert "41.50 %" in said.out and "2 seeds" in said.out
    command = "python cli.py distill --recipe student_alone+two_cores --set student.width=4"
    assert f"  {command} --set train.epochs=2 --set data.train_images=1000\n" in said.out
    found = json.loads(door("plan", "--minutes", 100, "--json").out)
    assert found.keys() == {
        "minutes", "rules", "data", "device", "processor_share", "best", "quickest", "recipes",
        "against_the_rules", "measured_s",
    }  # fmt: skip
    (row,) = found["recipes"]
    assert row.keys() == {
        "recipe", "role", "accuracy", "seeds", "fits", "minutes", "low", "high", "is_timed",
        "teacher", "training", "commands",
    }  # fmt: skip
    assert row["training"].keys() == {
        "recipe", "overrides", "network", "parameters", "flop", "minutes", "low", "high",
        "is_timed", "steps",
    }  # fmt: skip
    assert found["best"] == found["quickest"] == row["recipe"] == "student_alone+two_cores"
    assert row["is_timed"] and row["training"]["steps"] >= 3
    assert 0 < row["low"] < row["minutes"] < row["high"] < 5
    assert (row["accuracy"], row["seeds"], row["teacher"]) == (41.5, 2, None)


def test_plan_without_a_fit_names_the_quickest(
    door: Door, one_recipe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "FORWARD_SHARE", 1e6)  # hours of validation
    said = door("plan", "--minutes", 1)
    assert said.code == 0
    assert "Nothing fits into 1 minute on" in said.out
    assert "The quickest is student_alone+two_cores: about" in said.out


def test_plan_refuses_wrong_requests(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(door("plan", "--rules", "nyu1999"), "--rules nyu1999 are unknown; allowed: nyu2022")
    refused(door("plan", "--data", "nowhere"), "data source 'nowhere' is neither")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    refused(door("plan"), "plan measures one process")


@pytest.mark.slow
def test_a_plan_of_every_recipe_takes_less_than_a_minute() -> None:
    began_at = time.monotonic()
    made = subprocess.run(
        [sys.executable, "cli.py", "plan", "--json"], cwd=REPO, capture_output=True, check=True
    )
    assert time.monotonic() - began_at < 60
    assert len(json.loads(made.stdout)["recipes"]) > 20


@pytest.mark.parametrize("recipe", ["fast_2022_kd", "fast_2022_alone"])
def test_recipes_for_the_rules_of_2022_follow_them(recipe: str, door: Door) -> None:
    checked = door("design", "--rules", "nyu2022", "--check", recipe)
    assert checked.code == 0
    assert "follows the rules of NYU ECE-GY 7123, 2022: 4,903,242 parameters" in checked.out


def test_design_checks_a_recipe_against_rules(door: Door) -> None:
    legal = door("design", "--rules", "nyu2022", "--check", "nyu2022_n3_b2_c85")
    assert legal.out == (
        "nyu2022_n3_b2_c85 follows the rules of NYU ECE-GY 7123, 2022: 4,895,755 parameters\n"
    )
    over = door("design", "--rules", "nyu2022", "--check", "nyu2023_og_64")
    assert over.code == 1
    assert "the input layer's filters are F_1 = 3 wide: they are 7" in over.err
    assert "fewer than 5,000,000 parameters: it has 5,000,266" in over.err
    as_json = door("design", "--rules", "nyu2022", "--check", "nyu2023_og_64", "--json")
    told = json.loads(as_json.out)
    assert as_json.code == 1 and told["keeps"] is False
    assert (told["parameters"], len(told["broken"])) == (5_000_266, len(over.err.splitlines()) - 1)
    kept = door("design", "--rules", "nyu2022", "--check", "nyu2022_n3_b2_c85", "--json")
    assert kept.code == 0 and json.loads(kept.out)["broken"] == []
    refused(door("design", "--check", "kd"), "Type it with --rules nyu2022 or --rules nyu2025.")
    refused(
        door("design", "--rules", "nyu2025", "--max-params", 6_000_000),
        "more than the rules of NYU, 2025", "allow: at most 5,000,000.",
    )  # fmt: skip
    refused(
        door("design", "--rules", "nyu2022", "--check", "kd", "--plot", "a.svg"),
        "--check and --plot exclude each other",
    )
    refused(
        door("search", "--set", "train.epochs=7"), "search sets train.epochs itself", "--epochs N"
    )
    refused(door("design", "--max-params", 9), "has fewer than 9 parameters", "larger --max-params")
    refused(door("seeds", "-r", "kd", "--set", "train.seed=3"), "seeds sets train.seed itself")
    refused(
        door("design", "--stages", "5-2"), "--stages 5-2 is not a range of numbers of at least 1"
    )
    refused(door("search", "-r", "tiny", "--set", "train.minutes=1"), "does not take train.minutes")


def test_several_seeds_are_trained_once_and_compared(door: Door, pets: Path) -> None:
    """The second call trains nothing and says the same."""
    door("train-teacher", "-r", "tiny", *SMALL[2:], *ALONE, "--data", pets, "--out", "t")
    same = ("seeds", *SMALL, "--n", 2, "--teacher", "t", "--data", pets, "--out", "s", "--json")
    first, second = door(*same), door(*same)
    said = json.loads(first.out)
    assert second.out == first.out and "s/seed-1 is finished: nothing to do." in second.err
    assert [Path(row["run"]).name for row in said["runs"]] == [
        "seed-0", "control-0", "seed-1", "control-1",
    ]  # fmt: skip
    results = [json.loads((Path(row["run"]) / "result.json").read_text()) for row in said["runs"]]
    assert [row["top1"] for row in said["runs"]] == [r["metrics"]["top1/test"] for r in results]
    assert results[0]["weights"] != results[2]["weights"]
    refused(door(*same, "--set", "optim.lr=0.5"), "the recipe is not the one it began with")


def test_a_real_process_ends_as_the_shell_expects(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "the run"
    command = ["distill", *SMALL, *ALONE, "--data", str(pets), "--out", str(out)]
    wrong = process(*command, "--set", "train.epochs=1.5")
    _, message = wrong.communicate(timeout=60)
    assert wrong.returncode == 2
    assert message == (
        "RecipeError: 1 fault in tiny\n"
        "  train.epochs = 1.5 (--set) is a number; allowed: a whole number (at least 1, at most "
        "1_000_000)\n"
    )
    quiet = {"UNDERSTUDY_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    long = process(*command, "--set", "train.epochs=100000", **quiet)
    try:
        assert long.stderr is not None
        assert any(line.startswith("epoch 1/") for line in long.stderr), "it must have begun"
        long.terminate()
        _, last_words = long.communicate(timeout=60)
    finally:
        long.kill()
    assert long.returncode == 143
    assert "Traceback" not in last_words
    assert last_words.splitlines()[-1].endswith(f"with --out '{out}' --resume")


# What is stored of teachers' answers


@pytest.fixture
def stored(door: Door, teacher: Path) -> Said:
    """A run of two epochs whose teacher's answers were stored."""
    said = door(
        *("distill", "--recipe", "tiny+cached_targets", "--teacher", teacher),
        *("--set", "train.epochs=2", "--out", "first"),
    )
    assert said.code == 0, said.err
    return said


def stocks(door: Door) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(door("cache", "info", "--json").out)
    return listed


def test_empty_cache_is_an_empty_table(door: Door) -> None:
    assert stocks(door) == []
    for verb in ("info", "verify"):
        said = door("cache", verb)
        assert (said.code, said.out.split(" in ")[0]) == (0, "no logits are cached")


def test_cache_info_lists_entries(stored: Said, door: Door, teacher: Path) -> None:
    (row,) = stocks(door)
    assert row["teacher"] == [str(teacher)]
    assert (row["views"], row["data"]) == (2, "synthetic")
    assert row["bytes"] > 2 * 2 * 10 * 320  # type: ignore[operator]  # two views of float16
    table = door("cache", "info").out
    assert str(row["key"])[:12] in table
    assert f"{row['bytes'] / 1e3:.1f} kB" in table  # type: ignore[operator]
    assert row["seed"] == 0
    assert "Crop(padding=4)" in table


def test_head_says_how_many_views_are_cached(stored: Said, door: Door, teacher: Path) -> None:
    taught = ("distill", "--recipe", "tiny+cached_targets", "--teacher", teacher)
    assert "0 of 2 views of the teacher's logits are cached" in unfolded(stored.err)
    again = door(*taught, "--set", "train.epochs=3", "--out", "again")
    assert "2 of 3 views of the teacher's logits are cached" in unfolded(again.err)
    for key, why in (
        ("data.seed=7", "data.seed"),
        ("augment.flip=false", "augmentation, mixing or resolution"),
    ):
        other = door(*taught, "--set", "train.epochs=1", "--set", key, "--out", key)
        assert f"the most similar cached logits differ in {why}:" in unfolded(other.err)


def test_cache_verify_compares_with_the_teacher(stored: Said, door: Door) -> None:
    said = door("cache", "verify")
    assert said.code == 0, said.err
    assert re.search(
        r"^[0-9a-f]{12}  2 views; logits of 512 samples in 2 views recomputed; sound$",
        said.out,
        re.M,
    )


def test_cache_verify_finds_damage_and_foreign_logits(
    stored: Said, door: Door, tmp_path: Path
) -> None:
    first, second = sorted((tmp_path / "cache" / "targets").rglob("view-*.npz"))
    with np.load(second) as kept:
        np.savez(second, array=kept["array"][::-1])  # another sample's answers
    first.write_bytes(first.read_bytes()[:-40])
    said = door("cache", "verify")
    assert said.code == 1
    key = first.parent.name[:12]
    assert f"{key}  2 views; damaged: 0; the teacher now computes other logits for: 1; " in said.out
    assert f"type python cli.py cache drop {key}" in said.err


def test_logits_that_no_longer_match_are_recomputed(
    stored: Said, door: Door, teacher: Path, tmp_path: Path
) -> None:
    for view in (tmp_path / "cache" / "targets").rglob("view-*.npz"):
        with np.load(view) as kept:
            np.savez(view, array=kept["array"][::-1])
    command = ("distill", "--recipe", "tiny+cached_targets", "--teacher", teacher)
    again = door(*command, "--set", "train.epochs=2", "--out", "again")
    assert "the cached logits differ from the teacher's current logits" in unfolded(again.err)
    weights = [Path(run, "student.safetensors").read_bytes() for run in ("first", "again")]
    assert weights[0] == weights[1]
    assert door("cache", "verify").code == 0, "they were written anew"


def test_cache_verify_without_its_teacher(stored: Said, door: Door, teacher: Path) -> None:
    (row,) = stocks(door)
    about = Path(str(row["path"]), "about.json")
    assert str(teacher) in about.read_text()
    about.write_text(about.read_text().replace(str(teacher), str(teacher.with_name("gone"))))
    said = door("cache", "verify")
    assert said.code == 0
    assert "2 views; the teacher could not be run: " in unfolded(said.out)
    assert "is not a run: there is no such folder" in unfolded(said.out)
    assert unfolded(said.out).endswith("; readable, not compared with the teacher")
    about.write_text("{")
    assert "has no readable about.json; readable, not compared" in unfolded(
        door("cache", "verify").out
    )


def test_foreign_files_in_the_cache_are_skipped(stored: Said, door: Door, teacher: Path) -> None:
    (row,) = stocks(door)
    path = Path(str(row["path"]))
    (path / "view-xx.npz").write_text("no view")
    (path.parent / "strange").mkdir()
    (path / "about.json").write_text("{")
    assert [each["views"] for each in stocks(door)] == [2]
    Path(path, "view-00000.npz").write_text("damaged")
    again = door(
        *("distill", "--recipe", "tiny+cached_targets", "--teacher", teacher),
        *("--set", "train.epochs=2", "--out", "again"),
    )
    assert "1 of 2 views of the teacher's logits are cached" in unfolded(again.err)
    assert "1 of the cached views is damaged: computed and cached again" in unfolded(again.err)
    (again_row,) = stocks(door)
    assert again_row["teacher"] == [str(teacher)], "it says again what it holds"
    door("cache", "drop", "--all")
    assert (path.parent / "strange").exists()


def test_cache_drop_deletes_entries(stored: Said, door: Door) -> None:
    (row,) = stocks(door)
    refused(door("cache", "drop"), "no KEY was given", "cache info")
    refused(door("cache", "drop", "ab", "--all"), "KEY and --all exclude each other")
    refused(door("cache", "drop", "zz"), "'zz' is the beginning of 0 keys", "cache info")
    assert stocks(door) == [row]
    said = door("cache", "drop", str(row["key"])[:8])
    assert re.search(r"^1 dropped, \d+\.\d kB freed$", said.out, re.M)
    assert stocks(door) == []
    assert "0 dropped" in door("cache", "drop", "--all").out


def unfolded(text: str) -> str:
    """A screen of 80 columns as one line."""
    return " ".join(text.split())


# Reports


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["nowhere"], "nowhere is not a run: there is no such folder"),
        (["STUDENT", "TEACHER"], "a report of 2 runs belongs to none of their folders"),
        (["STUDENT", "--test-curve"], "Train it with --set train.keep_epochs=1"),
    ],
)
def test_report_refuses_wrong_requests(
    door: Door, taught: tuple[RunFolder, object], teacher: Path, arguments: list[str], found: str
) -> None:
    runs = {"STUDENT": str(taught[0].path), "TEACHER": str(teacher)}
    refused(door("report", *(runs.get(word, word) for word in arguments)), found, lines=2)


def test_a_report_of_one_run_and_of_two(
    door: Door, taught: tuple[RunFolder, object], teacher: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two.html"
    said = door("report", taught[0].path, taught[0].path, "--out", one)  # the same one, said twice
    assert (said.code, said.out) == (0, f"{one / 'report.html'}\n")
    assert "A student, ResNet" in (one / "report.html").read_text()
    said = door("report", taught[0].path, teacher, "--out", two)
    assert (said.code, said.out) == (0, f"{two}\n")
    assert "2 runs in 2 groups" in two.read_text()
    assert (tmp_path / "two_files" / "tables" / "groups.tex").exists()
