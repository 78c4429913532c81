"""Whole runs: repeatable, resumable, honest about the teacher and the test split."""

import hashlib
import json
import re
import shutil
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from distill.components.build_network import build_design, load_trained
from distill.data import array_cache
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.evaluation import write_results as result
from distill.evaluation.evaluate_run import EvalOptions, evaluate_run
from distill.events import TOTAL, End, Epoch, Start, Step, loss_name
from distill.files.run_json_schemas import fingerprint_of_names
from distill.metrics import measures
from distill.models import checkpoint
from distill.recipe import recipe_fingerprint, recipes
from distill.runs import check_runs_match
from distill.runs.run_folder import RunFolder
from distill.runs.teacher_student_summary import closing_rows
from distill.training import run
from tests.forked_process import ForkedProcess
from tests.make_runs import Events, train, two_epochs


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state_of(run: RunFolder) -> dict[str, torch.Tensor]:
    """Every tensor of the training state, by dotted name."""
    found = checkpoint.load(run.last)
    flat: dict[str, torch.Tensor] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            flat[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(f"{name}.{key}", item)

    collect("", found[0])
    return flat


def same(one: RunFolder, other: RunFolder) -> bool:
    a, b = state_of(one), state_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.long
def test_the_same_seed_twice_gives_the_same_bits(distilled, teacher, tmp_path) -> None:
    again, _ = train(tmp_path / "again", *two_epochs(teacher))
    assert same(distilled[0], again)
    assert digest(distilled[0].weights("student")) == digest(again.weights("student"))


@pytest.mark.long
def test_another_seed_gives_others(distilled, teacher, tmp_path) -> None:
    for key in ("train.seed", "data.seed"):
        other, _ = train(tmp_path / key, *two_epochs(teacher), f"{key}=1")
        assert not same(distilled[0], other)


@pytest.mark.long
def test_resumed_is_uninterrupted_bit_for_bit(distilled, teacher, tmp_path) -> None:
    out = tmp_path / "cut"
    resolved = recipes.load("tiny", two_epochs(teacher))
    events = run.train_and_test(run.TrainingRequest("student", resolved.recipe, "tiny", out))
    for event in events:
        if isinstance(event, Step) and event.step == 13:
            break  # killed in the middle of epoch 2
    events.close()  # type: ignore[attr-defined]
    assert not RunFolder(out).is_finished
    assert not same(distilled[0], RunFolder(out)), "the cut run must not be finished already"

    resumed, later = train(out, *two_epochs(teacher), resume=True)
    assert isinstance(later[0], Start) and later[0].first_step == 10
    assert same(distilled[0], resumed)
    assert digest(distilled[0].weights("student")) == digest(resumed.weights("student"))
    assert isinstance(later[-1], End) and isinstance(distilled[1][-1], End)
    assert later[-1].metrics == distilled[1][-1].metrics


@pytest.mark.long
def test_killed_for_real_and_resumed_is_uninterrupted(teacher, tmp_path) -> None:
    recipe = tmp_path / "three.toml"
    three = [*two_epochs(teacher), "train.epochs=3"]
    recipe.write_text(recipes.dumps(recipes.load("tiny", three).recipe))
    whole, _ = train(tmp_path / "whole", *three)
    out = tmp_path / "killed"
    journal = RunFolder(out).journal
    child = ForkedProcess(["cli.py", "distill", "--recipe", recipe, "--out", out], {})
    while '"epoch"' not in (journal.read_text() if journal.exists() else ""):
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.communicate()
    assert not RunFolder(out).is_finished
    resumed, events = train(out, *three, resume=True)
    assert isinstance(events[0], Start) and events[0].first_step in (0, 10, 20)
    assert same(whole, resumed)
    assert digest(whole.weights("student")) == digest(resumed.weights("student"))


@pytest.mark.long
def test_saving_interval_does_not_change_the_weights(tmp_path) -> None:
    # At a rising rate the best epoch is not the last: its weights must be those of its moment.
    alone = ["loss.kd=false", "loss.hard.weight=1.0", "train.epochs=4", "optim.warmup_epochs=3.9"]
    often, events = train(tmp_path / "often", *alone, "optim.lr=3.0")
    seldom, _ = train(tmp_path / "seldom", *alone, "optim.lr=3.0", "train.save_every=4")
    assert events[-1].epoch < 4
    assert digest(often.weights("student")) == digest(seldom.weights("student"))
    assert [path.name for path in seldom.best.iterdir()] == [
        f"epoch-{events[-1].epoch}.safetensors"
    ]


@pytest.mark.long
def test_broken_folders_among_runs_are_passed_over(teacher, tmp_path) -> None:
    """One run beside all of them: each has a note of its own, and none can be the teacher."""
    texts = ["", "{}", "[]", '{"role": 3}', '{"role": "teacher"}', "[" * 100_000]
    shutil.copytree(teacher, tmp_path / "good")
    broken = [tmp_path / f"broken-{i}" for i in range(len(texts))]
    for folder, text in zip(broken, texts, strict=True):
        shutil.copytree(teacher, folder)
        (folder / "result.json").write_text(text)
    _, events = train(tmp_path / "student")
    assert events[0].teacher == str(tmp_path / "good")
    notes = "\n".join(note for note in events[0].notes if "was skipped" in note)
    for folder in broken:
        assert f"{folder} was skipped: {folder}/result.json" in notes
    assert closing_rows(RunFolder(tmp_path / "student"))[0].top1_test is not None
    for folder in broken:
        with pytest.raises(UserError, match="result.json (is damaged|has no|: )"):
            train(tmp_path / "other", f"teacher.runs=['{folder}']")


def test_resume_of_a_finished_run_does_nothing(distilled, teacher) -> None:
    before = digest(distilled[0].result_file)
    _, events = train(distilled[0].path, *two_epochs(teacher), resume=True)
    assert events == []
    assert digest(distilled[0].result_file) == before


@pytest.mark.long
def test_resume_where_nothing_is_begins_at_the_start(teacher, tmp_path) -> None:
    folder, events = train(tmp_path / "new", f"teacher.runs=['{teacher}']", resume=True)
    assert isinstance(events[0], Start) and events[0].first_step == 0
    assert folder.is_finished


@pytest.mark.long
def test_the_teacher_is_the_same_before_and_after(teacher, tmp_path, monkeypatch) -> None:
    seen = []
    build = run.selection.load_teacher
    monkeypatch.setattr(
        run.selection, "load_teacher", lambda *a: seen.append(build(*a)) or seen[-1]
    )
    before = digest(RunFolder(teacher).weights("teacher"))
    file = load_file(RunFolder(teacher).weights("teacher"))
    train(tmp_path / "student", *two_epochs(teacher))
    after = {name: t.numpy() for name, t in seen[0].net.state_dict().items()}
    assert after.keys() == file.keys()
    for name, tensor in file.items():  # parameters and batch-norm buffers
        assert np.array_equal(after[name], tensor), name
    assert any("running_mean" in name for name in file)
    assert not any(p.requires_grad or p.grad is not None for p in seen[0].parameters())
    assert digest(RunFolder(teacher).weights("teacher")) == before


def test_events_come_in_order_and_add_up(distilled: tuple[RunFolder, Events]) -> None:
    events = distilled[1]
    assert [type(e) for e in events] == [Start, *[Step] * 10, Epoch, *[Step] * 10, Epoch, End]
    for event in events[1:-1]:
        m = event.metrics
        weighted = 0.1 * m[loss_name("hard")] + 0.9 * m[loss_name("kd")]
        assert m[loss_name(TOTAL)] == pytest.approx(weighted, rel=1e-6)


@pytest.mark.long
def test_result_is_that_of_the_weights_file(distilled: tuple[RunFolder, Events]) -> None:
    folder, events = distilled
    test = load_data_set.load("synthetic", "test")
    measured = evaluate_run(folder)
    assert measured["n"] == len(test.labels) == 2000
    saved = np.load(folder.evaluation)
    assert np.array_equal(saved["labels"], test.labels)
    by_hand = (saved["logits"].argmax(1) == test.labels).sum() / 2000
    assert measured["top1"] == by_hand == events[-1].metrics["top1/test"]
    again = measures(saved["logits"], saved["labels"])
    assert again["nll"] == pytest.approx(measured["nll"])
    assert saved["teacher_logits"].shape == (2000, 10)


def test_the_worst_mistakes_are_mistakes_most_confident_first(distilled) -> None:
    saved = np.load(distilled[0].evaluation)
    logits, labels, worst = saved["logits"], saved["labels"], saved["mistakes"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    confidence = (p / p.sum(1, keepdims=True)).max(1)[worst]
    assert (logits[worst].argmax(1) != labels[worst]).all()
    assert (np.diff(confidence) <= 1e-6).all()
    assert np.array_equal(
        saved["mistake_pixels"], load_data_set.load("synthetic", "test").images[worst]
    )


def test_folder_has_expected_files_without_metadata(distilled) -> None:
    folder, _ = distilled
    raw = folder.weights("student").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert "__metadata__" not in header
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        "recipe.toml", "last", "best", "student.safetensors", "result.json",
        "evaluation.npz", "environment.json", "last.old", ".lock", "epochs",
    }  # fmt: skip  # the CLI writes the journal


@pytest.mark.long
def test_test_split_is_measured_once_and_after_training(teacher, tmp_path, monkeypatch) -> None:
    order: list[str] = []
    load, step = load_data_set.load, run.loop.step
    monkeypatch.setattr(
        load_data_set, "load", lambda s, split, **kw: order.append(split) or load(s, split, **kw)
    )
    monkeypatch.setattr(run.loop, "step", lambda *a: order.append("step") or step(*a))
    train(tmp_path / "student", f"teacher.runs=['{teacher}']")
    # Before the first step its fingerprint alone is taken: see test_identity.
    assert order == ["train", "test", *["step"] * 10, "test"]


@pytest.mark.long
def test_last_epoch_is_saved_without_hold_out(teacher, tmp_path) -> None:
    _, events = train(tmp_path / "all", *two_epochs(teacher), "data.holdout=0")
    assert events[-1].epoch == 2
    assert "top1/val" not in events[-1].metrics
    assert any("no epoch is selected" in note for note in events[0].notes)


@pytest.mark.long
def test_several_teachers_are_one(teacher, tmp_path) -> None:
    shutil.copytree(teacher, tmp_path / "other")
    runs = f"teacher.runs=['{teacher}', '{tmp_path / 'other'}']"
    _, events = train(tmp_path / "student", runs)
    _, alone = train(tmp_path / "alone", f"teacher.runs=['{teacher}']")
    # Two equal teachers predict as one: their mean probability is its own.
    for ours, theirs in zip(events[1:-1], alone[1:-1], strict=True):
        assert ours.metrics["loss/kd"] == pytest.approx(theirs.metrics["loss/kd"], rel=1e-4)


@pytest.mark.long
def test_a_fitting_teacher_is_taken_and_named(teacher, tmp_path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    _, events = train(tmp_path / "student")
    assert events[0].teacher == str(tmp_path / "teacher")
    assert events[0].teacher_top1 is not None


@pytest.mark.long
@pytest.mark.parametrize(
    ("most", "overrides", "n"),
    [(600, [], 600), (599, [], 100), (600, ["data.holdout=0"], 100)],
)
def test_teacher_is_measured_on_all_or_a_part(
    teacher, tmp_path, monkeypatch, most: int, overrides: list[str], n: int
) -> None:
    """600 of the 6,000 synthetic images are held out; a part is called one by its number."""
    monkeypatch.setattr(run, "MOST_CHECK_IMAGES", most)
    monkeypatch.setattr(run, "TEACHER_CHECK_IMAGES", 100)
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    resolved = recipes.load("tiny", [f"teacher.runs=['{teacher}']", *overrides])
    tasks: list[tuple[str, int, int]] = []

    def progress(*task: str | int) -> None:
        tasks.append(task)  # type: ignore[arg-type]

    for name, part in (("first", [("measuring the teacher", n, n)]), ("remembered", [])):
        request = run.TrainingRequest("student", resolved.recipe, "tiny", tmp_path / name)
        with closing(run.train_and_test(request, progress=progress)) as events:
            start = next(events)
        assert (start.teacher_images, start.teacher_top1 is not None) == (n, True)
        assert [task for task in tasks if task[0] == "measuring the teacher"][-1:] == part
        tasks.clear()


@pytest.mark.long
def test_every_long_task_is_reported(teacher, tmp_path) -> None:
    resolved = recipes.load("tiny", [f"teacher.runs=['{teacher}']"])
    request = run.TrainingRequest("student", resolved.recipe, "tiny", tmp_path / "run")
    tasks: dict[str, tuple[int, int]] = {}

    def progress(what: str, done: int, total: int) -> None:
        tasks[what] = done, total

    *_, end = run.train_and_test(request, progress=progress)
    for task in (
        "reading the train split",
        "reading the test split",
        "computing the fingerprint of the train split",
        "computing the fingerprint of the test split",
        "comparing test with training images",
        "loading the teacher",
        "building the networks",
        "measuring top1/val",
        "measuring the test split",
        "the teacher's test logits",
        "the held-out logits",
    ):
        done, total = tasks.pop(task)
        assert done == total > 0, task
    assert all(done == total > 0 for done, total in tasks.values()), "every task ends"
    result = RunFolder(tmp_path / "run").result()
    assert end.elapsed_s < end.total_s == result["total_s"]
    assert result["teacher"]["top1_images"] == 600


def test_no_teacher_anywhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="train-teacher --recipe tiny --set loss.kd=false"):
        train(tmp_path / "student")


def test_folder_that_holds_run_is_not_overwritten(distilled, teacher) -> None:
    with pytest.raises(UserError, match=r"already contains a run.\nContinue it with --resume"):
        train(distilled[0].path, *two_epochs(teacher))


@pytest.mark.long
def test_resume_names_the_keys_that_changed(teacher, tmp_path) -> None:
    out = tmp_path / "cut"
    resolved = recipes.load("tiny", two_epochs(teacher))
    next(iter(run.train_and_test(run.TrainingRequest("student", resolved.recipe, "tiny", out))))
    with pytest.raises(UserError, match=r"optim.lr: 0.05 -> 0.1"):
        train(out, *two_epochs(teacher), "optim.lr=0.1", resume=True)


def cut_short(teacher: Path, out: Path) -> RunFolder:
    """A run of two epochs that was killed in the second."""
    resolved = recipes.load("tiny", two_epochs(teacher))
    events = run.train_and_test(run.TrainingRequest("student", resolved.recipe, "tiny", out))
    for event in events:
        if isinstance(event, Step) and event.step == 13:
            break
    events.close()  # type: ignore[attr-defined]
    return RunFolder(out)


@pytest.mark.long
def test_moved_teacher_is_named_by_its_new_path(distilled, teacher, tmp_path) -> None:
    """Its weights decide whether a run is resumed."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(teacher, old)
    cut = cut_short(old, tmp_path / "cut")
    old.rename(new)
    for named in (two_epochs(old), two_epochs(old)[1:]):
        with pytest.raises(
            UserError, match=r"teacher .*/old is not a run: .*\n.*\nIf its folder was moved, give"
        ):
            train(cut.path, *named, resume=True)
    resumed, events = train(cut.path, *two_epochs(new), resume=True)
    assert isinstance(events[0], Start) and events[0].first_step == 10
    assert same(distilled[0], resumed)
    assert recipes.read(resumed.recipe).teacher.runs == (str(new),)


@pytest.mark.long
def test_a_run_is_not_resumed_with_another_teacher(
    distilled, teacher, other_teacher, tmp_path
) -> None:
    shutil.copytree(teacher, tmp_path / "moved")
    shutil.copytree(distilled[0].path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    check_runs_match.check_same(folder, recipes.load("tiny", two_epochs(tmp_path / "moved")).recipe)
    weights = RunFolder(other_teacher).result()["weights"]
    with pytest.raises(UserError, match=rf"\n  the teacher's weights: \w+ -> {weights}\nGive the"):
        check_runs_match.check_same(folder, recipes.load("tiny", two_epochs(other_teacher)).recipe)
    folder.result_file.unlink()
    with pytest.raises(UserError, match="cannot be resumed: its teacher changed since it started"):
        train(folder.path, *two_epochs(other_teacher), resume=True)


@pytest.mark.long
def test_a_resumed_run_may_measure_the_network_too(distilled, teacher, tmp_path) -> None:
    """More is measured; what is trained and saved is the same."""
    folder = cut_short(teacher, tmp_path / "cut")
    both = [*two_epochs(teacher), "train.validate_both=true"]
    resumed, events = train(folder.path, *both, resume=True)
    assert digest(distilled[0].weights("student")) == digest(resumed.weights("student"))
    [epoch] = [event for event in events if isinstance(event, Epoch)]
    [alone] = [event for event in distilled[1] if isinstance(event, Epoch) and event.epoch == 2]
    more = {"top1/val", "nll/val", "ece/val"}
    assert epoch.metrics.keys() - alone.metrics.keys() == more
    assert {name: epoch.metrics[name] for name in alone.metrics} == alone.metrics


@pytest.mark.long
def test_a_run_from_before_these_keys_is_resumed(distilled, teacher, tmp_path) -> None:
    folder = cut_short(teacher, tmp_path / "cut")
    text = folder.recipe.read_text()
    older = re.sub("(min_lr|validate_both) = .*\n", "", text)
    assert len(older.splitlines()) == len(text.splitlines()) - 2
    folder.recipe.write_text(older)
    resumed, events = train(folder.path, *two_epochs(teacher), resume=True)
    assert events[0].first_step == 10
    assert digest(distilled[0].weights("student")) == digest(resumed.weights("student"))


def test_end_event_has_accuracy_of_saved_weights(distilled) -> None:
    """Of a run with averaged weights, no other is measured."""
    folder, events = distilled
    metrics = [event.metrics for event in events if isinstance(event, Epoch | End)]
    assert all("top1/val_ema" in each and "top1/val" not in each for each in metrics)
    assert folder.result()["metrics"] == events[-1].metrics


def edited(teacher: Path, out: Path, **changes: object) -> Path:
    """A copy of the teacher's run with another result.json."""
    shutil.copytree(teacher, out)
    result = json.loads((out / "result.json").read_text()) | changes
    result["data"]["class_names_fingerprint"] = fingerprint_of_names(result["class_names"])
    (out / "result.json").write_text(json.dumps(result))
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": list("abc")}, "has 3 classes, the data has 10"),
        (
            {"class_names": list("abcdefghij")},
            "was trained on other classes \\(a, b, c, …\\) than this data has",
        ),
        ({"data": {"fingerprint": "0" * 64}}, "was trained on other images"),
    ],
)
def test_a_teacher_of_something_else_is_refused(teacher, tmp_path, changes, message) -> None:
    other = edited(teacher, tmp_path / "other", **changes)
    with pytest.raises(UserError, match=message):
        train(tmp_path / "student", f"teacher.runs=['{other}']")


def test_a_teacher_without_weights_is_refused(teacher, tmp_path) -> None:
    other = edited(teacher, tmp_path / "other")
    (other / "teacher.safetensors").unlink()
    with pytest.raises(UserError, match="has no teacher.safetensors; train one"):
        train(tmp_path / "student", f"teacher.runs=['{other}']")


def test_teacher_trained_on_hold_out_is_refused(teacher, tmp_path) -> None:
    # It held out 60 of 600 a class; with a fifth held out, half of those are what it learnt from.
    with pytest.raises(
        UserError, match=r"trained on 320 of the 1,200 images .*\n.*data.holdout=0.1"
    ):
        train(tmp_path / "student", f"teacher.runs=['{teacher}']", "data.holdout=0.2")


def test_teacher_with_a_changed_recipe_is_refused(teacher, tmp_path) -> None:
    other = edited(teacher, tmp_path / "other")
    recipe = (other / "recipe.toml").read_text()
    assert "holdout = 0.1" in recipe
    (other / "recipe.toml").write_text(recipe.replace("holdout = 0.1", "holdout = 0.2"))
    with pytest.raises(UserError, match=r"other/recipe.toml is not the recipe that .* finished"):
        train(tmp_path / "student", f"teacher.runs=['{other}']", "data.holdout=0.2")


def test_teacher_with_smaller_hold_out_is_refused(teacher, tmp_path) -> None:
    data = RunFolder(teacher).result()["data"] | {"val_images": 0}
    other = edited(teacher, tmp_path / "other", data=data)
    with pytest.raises(UserError, match="held out 0 images, but its recipe holds out 600"):
        train(tmp_path / "student", f"teacher.runs=['{other}']")


@pytest.mark.long
def test_a_teacher_of_an_earlier_version_may_teach(teacher, tmp_path) -> None:
    """Its recipe.toml lacks keys that came later, and its fingerprint is of what it has."""
    other = edited(teacher, tmp_path / "other")
    path = other / "recipe.toml"
    path.write_text(re.sub("(min_lr|validate_both) = .*\n", "", path.read_text()))
    result = json.loads((other / "result.json").read_text())
    older = recipes.read(path).model_dump(mode="json", exclude={"about"}, exclude_none=True)
    del older["optim"]["min_lr"], older["train"]["validate_both"]
    tables = {**older, **{f"loss.{name}": term for name, term in older["loss"].items()}}
    for name, keys in recipe_fingerprint.LATER_KEYS.items():
        for key in keys.keys() & tables.get(name, {}).keys():
            del tables[name][key]
    text = json.dumps(older, sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    assert fingerprint != result["recipe_fingerprint"]
    (other / "result.json").write_text(json.dumps(result | {"recipe_fingerprint": fingerprint}))
    train(tmp_path / "student", f"teacher.runs=['{other}']")
    assert RunFolder(tmp_path / "student").is_finished


@pytest.mark.long
@pytest.mark.parametrize(
    ("value", "mode"), [(7.0, 0o700), (-0.1, 0o700), (float("nan"), 0o700), (0.5, 0o777)]
)
def test_doubtful_cached_accuracy_is_measured(teacher, tmp_path, monkeypatch, value, mode) -> None:
    """In a cache that others may write, any value is doubtful."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(cache))
    resolved = recipes.load("tiny", [f"teacher.runs=['{teacher}']"])

    def measured(name: str) -> float | None:
        request = run.TrainingRequest("student", resolved.recipe, "tiny", tmp_path / name)
        with closing(run.train_and_test(request)) as events:
            return next(events).teacher_top1

    top1 = measured("a")
    [file] = (cache / "teachers").glob("*.npz")
    np.savez(file, array=np.float64(value))
    (cache / "teachers").chmod(mode)
    assert measured("b") == top1 != value


def test_unused_teacher_is_refused(teacher, tmp_path) -> None:
    with pytest.raises(UserError, match="no term of this recipe reads a teacher"):
        train(tmp_path / "student", f"teacher.runs=['{teacher}']", "loss.kd=false")


@pytest.mark.long
def test_stages_of_unequal_networks_are_paired(teacher, tmp_path) -> None:
    """The student has two stages and the teacher three."""
    overrides = [f"teacher.runs=['{teacher}']", "loss.at.weight=1", "loss.sp.weight=1"]
    folder, events = train(tmp_path / "s", *overrides)
    start = next(event for event in events if isinstance(event, Start))
    assert [note for note in start.notes if note.startswith("loss.")] == [
        "loss.at compares the student's stages.0, stages.1 (of 2 stages) with the teacher's "
        "stages.1, stages.2 (of 3); to compare others, set loss.at.student_taps and "
        "loss.at.teacher_taps",
        "loss.sp compares the student's stages.1 (of 2 stages) with the teacher's stages.2 (of 3); "
        "to compare others, set loss.sp.student_tap and loss.sp.teacher_tap",
    ]
    at = recipes.read(folder.recipe).loss.at
    assert at is not None
    assert (at.student_taps, at.teacher_taps) == (
        ("stages.0", "stages.1"), ("stages.1", "stages.2"),
    )  # fmt: skip
    folder.result_file.unlink()  # as if it had been interrupted at its end
    _, events = train(tmp_path / "s", *overrides, resume=True)
    assert isinstance(events[-1], End) and folder.is_finished


def test_a_batch_larger_than_the_set_is_refused(teacher, tmp_path) -> None:
    with pytest.raises(UserError, match="train.batch_size = 512 is more than the 320"):
        train(tmp_path / "s", f"teacher.runs=['{teacher}']", "train.batch_size=512")


def test_a_batch_that_does_not_divide_is_refused(teacher, tmp_path) -> None:
    with pytest.raises(UserError, match="Type --set train.batch_size=33"):
        train(tmp_path / "s", f"teacher.runs=['{teacher}']", "train.accumulate=3")


def test_other_classes_cannot_be_evaluated(distilled, tmp_path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), len(str(folder))).save(folder / "1.png")
    with pytest.raises(UserError, match="has the classes striped disc"):
        evaluate_run(distilled[0], EvalOptions(str(tmp_path / "pets")))


def test_an_unfinished_teacher_is_refused(teacher, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    (other / "result.json").unlink()
    with pytest.raises(UserError, match="other is not finished: it has no result.json"):
        train(tmp_path / "student", f"teacher.runs=['{other}']")


def test_weights_of_another_network_are_refused(teacher, distilled) -> None:
    net = load_trained(distilled[0])
    with pytest.raises(
        UserError, match=r"of this network: \d+ missing, stem.0.weight first; \d+ unknown"
    ):
        checkpoint.load_weights(RunFolder(teacher).weights("teacher"), net)
    with pytest.raises(UserError, match="result.json cannot be read as weights"):
        checkpoint.load_weights(RunFolder(teacher).result_file, net)


@pytest.mark.long
def test_resume_on_other_images_is_refused(teacher, tmp_path) -> None:
    out = tmp_path / "cut"
    overrides = [f"teacher.runs=['{teacher}']", "train.epochs=2"]
    resolved = recipes.load("tiny", overrides)
    for event in run.train_and_test(run.TrainingRequest("student", resolved.recipe, "tiny", out)):
        if isinstance(event, Epoch):
            break
    tensors, progress = checkpoint.load(out / "last")
    checkpoint.save(out / "last", tensors, progress | {"data": "other"})
    with pytest.raises(UserError, match="cannot be resumed: its data changed since it started"):
        train(out, *overrides, resume=True)


def test_more_classes_can_break_the_budget() -> None:
    recipe = recipes.load("kd", ["student.max_params=4_700_000"]).recipe
    assert build_design(recipe, 10).parameters == 4_697_162
    with pytest.raises(UserError, match="with 100 classes, .* 20,293 too many"):
        build_design(recipe, 100)


@pytest.mark.slow
def test_compiled_steps_train_the_same_student(teacher, tmp_path) -> None:
    plain, _ = train(tmp_path / "plain", f"teacher.runs=['{teacher}']")
    compiled, _ = train(tmp_path / "compiled", f"teacher.runs=['{teacher}']", "train.compile=true")
    a, b = (load_file(r.weights("student")) for r in (plain, compiled))
    assert a.keys() == b.keys()
    assert all(np.allclose(a[name], b[name], atol=1e-3) for name in a)


def test_evaluation_follows_no_link(tmp_path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    for name in (".evaluation.new.npz", "evaluation.npz"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    test = load_data_set.subset(load_data_set.load("synthetic", "train"), np.arange(20))
    result.write_evaluation(RunFolder(tmp_path), test, torch.zeros(20, 10), None, None)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert (tmp_path / "evaluation.npz").stat().st_size > 100


@pytest.mark.long
def test_unreadable_result_is_refused_before_training(teacher, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run, "_measure_teacher", lambda *_: (7.0, 60))
    resolved = recipes.load("tiny", two_epochs(teacher))
    request = run.TrainingRequest("student", resolved.recipe, "tiny", tmp_path / "run")
    with pytest.raises(UserError, match="in its result.json, 'teacher.top1'.*\nChange that value"):
        next(run.train_and_test(request))


@pytest.mark.long
def test_cached_accuracy_above_one_is_measured_again(teacher, tmp_path, monkeypatch) -> None:
    load = array_cache.load_cached

    def forged(key: str, *kind: object) -> object:
        return np.array(7.0) if key.startswith("teachers/") else load(key, *kind)

    monkeypatch.setattr(array_cache, "load_cached", forged)
    resolved = recipes.load("tiny", two_epochs(teacher))
    request = run.TrainingRequest("student", resolved.recipe, "tiny", tmp_path / "run")
    assert 0 <= next(run.train_and_test(request)).teacher_top1 <= 1
