"""Saved epoch weights: which epochs, complete after a stop, and measured once."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from safetensors.torch import load_file
from torch import nn

from distill.components.build_accelerator import evaluation_accelerator
from distill.components.build_network import load_trained
from distill.components.data_pipeline import split_images
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.evaluation import test_curve
from distill.evaluation.evaluate_run import evaluate_run
from distill.evaluation.predict_split import evaluate_network
from distill.events import MEASURES, Start, Step
from distill.format import format_size
from distill.models import epoch_weights
from distill.recipe import recipes
from distill.recipe.recipe_fingerprint import fingerprint_of_tables, recipe_fingerprint
from distill.runs.check_runs_match import check_same
from distill.runs.run_folder import RunFolder, write_json
from distill.training.run import TrainingRequest, train_and_test
from distill.training.signals import Request, Stopped
from tests.make_runs import Events, train, two_epochs
from tests.training.test_run import digest

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def keeping(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """As `distilled`, with the weights of every epoch saved."""
    out = tmp_path_factory.mktemp("runs") / "keeping"
    return train(out, *two_epochs(teacher), "train.keep_epochs=1")[0]


def test_saving_epoch_weights_changes_no_bit(
    keeping: RunFolder, teacher: Path, tmp_path: Path
) -> None:
    none, _ = train(tmp_path / "none", *two_epochs(teacher), "train.keep_epochs=0")
    assert epoch_weights.saved_epochs(keeping) == [1, 2]
    best = keeping.result()["epoch"]
    # the final weights: the average's, as in `best/`
    assert digest(epoch_weights.weights_path(keeping, best)) == digest(keeping.weights("student"))
    assert digest(keeping.weights("student")) == digest(none.weights("student"))
    first, second = (load_file(epoch_weights.weights_path(keeping, epoch)) for epoch in (1, 2))
    assert any(not first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(("every", "epochs"), [(2, [2, 3]), (9, [3])])
def test_every_so_many_and_the_last(tmp_path: Path, every: int, epochs: list[int]) -> None:
    few = ["loss.kd=false", "loss.hard.weight=1", "data.train_images=40", "train.epochs=3"]
    folder, _ = train(tmp_path / "run", *few, f"train.keep_epochs={every}")
    assert epoch_weights.saved_epochs(folder) == epochs


@pytest.mark.parametrize("stop_at", [10, 14])
def test_resumed_run_leaves_no_gap_and_same_bits(
    keeping: RunFolder, teacher: Path, tmp_path: Path, stop_at: int
) -> None:
    overrides = [*two_epochs(teacher), "train.keep_epochs=1"]
    request = TrainingRequest(
        "student", recipes.load("tiny", overrides).recipe, "tiny", tmp_path / "run"
    )
    with pytest.raises(Stopped):
        for event in train_and_test(request):
            if isinstance(event, Step) and event.step == stop_at:
                request.stop.request = Request.TERMINATE
    folder, _ = train(tmp_path / "run", *overrides, resume=True)
    for epoch in (1, 2):
        assert digest(epoch_weights.weights_path(folder, epoch)) == digest(
            epoch_weights.weights_path(keeping, epoch)
        )


def test_it_is_habit_that_resumed_run_may_change(keeping: RunFolder, teacher: Path) -> None:
    check_same(keeping, recipes.load("tiny", two_epochs(teacher)).recipe)


def test_epoch_weights_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    alone = ["loss.kd=false", "loss.hard.weight=1", "data.train_images=40", "train.keep_epochs=1"]
    resolved = recipes.load("tiny", [*alone, "train.epochs=2"])
    request = TrainingRequest("student", resolved.recipe, "tiny", tmp_path / "run")
    for event in train_and_test(request):
        if isinstance(event, Step):
            break  # as a kill would: no signal, no save
    folder = RunFolder(tmp_path / "run")
    later = epoch_weights.weights_path(folder, 2)
    later.parent.mkdir(exist_ok=True)
    later.touch()
    request = TrainingRequest("student", resolved.recipe, "tiny", tmp_path / "run", resume=True)
    next(train_and_test(request))
    assert not later.exists()


def test_test_curve_matches_evaluate_and_is_cached(
    keeping: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.test_curve.unlink(missing_ok=True)
    curve = test_curve.measure_epochs(keeping)
    assert set(curve) == {1, 2}
    evaluated = evaluate_run(keeping)
    chosen = curve[keeping.result()["epoch"]]
    for name in ("top1", "nll", "ece"):
        assert chosen[f"{name}/test"] == evaluated[name]
    recipe = recipes.read(keeping.recipe)
    split = split_images(recipe, load_data_set.load("synthetic", "train"))
    on_train = evaluate_network(load_trained(keeping), split.train, evaluation_accelerator())
    assert chosen["top1/train"] == on_train["top1"], "the whole training part, not augmented"
    assert len(json.loads(keeping.test_curve.read_text())) == 2

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the test split is read again")

    monkeypatch.setattr(test_curve, "test_split", never)
    assert test_curve.measure_epochs(keeping) == curve


def test_curve_that_contradicts_the_result_is_refused(keeping: RunFolder) -> None:
    test_curve.measure_epochs(keeping)
    right, final = keeping.test_curve.read_text(), keeping.result()["weights"]
    wrong = json.loads(right)
    assert final in wrong
    wrong[final]["top1/test"] = 0.99
    keeping.test_curve.write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=r"top1/test = 0.9900 for the final weights, .*\nDelete"):
        test_curve.measure_epochs(keeping)
    keeping.test_curve.write_text(right)


def test_changed_epoch_weights_are_measured_again(keeping: RunFolder) -> None:
    curve = test_curve.measure_epochs(keeping)
    known = json.loads(keeping.test_curve.read_text())
    gone = next(iter(known))
    keeping.test_curve.write_text(json.dumps({"another": {}} | {gone: known[gone]}))
    assert test_curve.measure_epochs(keeping) == curve


def test_epoch_weights_are_those_that_the_run_recorded(keeping: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(keeping.path, tmp_path / "run")))
    paths = {epoch: epoch_weights.weights_path(run, epoch) for epoch in (1, 2)}
    result = run.result()
    assert result["epoch_weights"] == {str(epoch): digest(paths[epoch]) for epoch in (1, 2)}
    content = bytearray(paths[1].read_bytes())
    content[-1] ^= 1
    paths[1].write_bytes(content)
    names = [f"{name}/{split}" for name in MEASURES for split in ("test", "train")]
    forged = dict.fromkeys(names, 0.9)
    write_json(run.test_curve, {digest(path): forged for path in paths.values()})
    with pytest.raises(UserError, match=r"epoch-1.safetensors is not the file that its run wrote"):
        test_curve.measure_epochs(run)
    del result["epoch_weights"]  # as in a result of an earlier version
    result["weights"] = "another"
    write_json(run.result_file, result)
    assert test_curve.measure_epochs(run)[1] == forged


def test_run_without_epoch_weights_is_explained(tmp_path: Path) -> None:
    alone = ["loss.kd=false", "loss.hard.weight=1", "data.train_images=40"]
    folder, events = train(tmp_path / "run", *alone, "train.keep_epochs=0")
    assert not folder.epochs.exists()
    assert not any("keeps the weights" in note for note in events[0].notes)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"saved the weights of no epoch.*\n.*keep_epochs=0:"):
        test_curve.measure_epochs(folder)


def test_every_run_has_a_curve_by_default(
    distilled: tuple[RunFolder, Events], tmp_path: Path
) -> None:
    start = distilled[1][0]
    folder = RunFolder(Path(shutil.copytree(distilled[0].path, tmp_path / "run")))
    assert set(test_curve.measure_epochs(folder)) == {1, 2}
    n_bytes = sum(t.nbytes for t in load_file(folder.weights("student")).values())
    said = f"keeps the weights of 2 epochs for report --test-curve, {format_size(2 * n_bytes)} ("
    assert isinstance(start, Start) and any(note.startswith(said) for note in start.notes)


@pytest.mark.parametrize(
    ("keep", "epochs", "saved"),
    [
        ("auto", 1, [1]),
        ("auto", 20, [*range(1, 21)]),
        ("auto", 300, [*range(15, 301, 15)]),
        ("auto", 27, [2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26, 27]),
        (4, 10, [4, 8, 10]),
        (5, 10, [5, 10]),
        (99, 10, [10]),
        (0, 10, []),
    ],
)
def test_epochs_to_save(keep: int | Literal["auto"], epochs: int, saved: list[int]) -> None:
    assert sorted(epoch_weights.epochs_to_save(keep, epochs)) == saved


@pytest.mark.parametrize(
    ("keep", "done", "free", "n"),
    [
        ("auto", 0, 2 * 4000 * 20, 20),
        ("auto", 0, 2 * 4000 * 20 - 1, 0),
        ("auto", 30, 2 * 4000 * 5, 20),  # 15 of 20 are saved already
        ("auto", 30, 2 * 4000 * 5 - 1, 0),
        (1, 0, 4000 * 40, 40),
    ],
)
def test_plan_leaves_space_on_the_disk(
    keep: int | Literal["auto"],
    done: int,
    free: int,
    n: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    folder, net = RunFolder(tmp_path / "no" / "run"), nn.Linear(999, 1)  # 4,000 bytes
    planned = epoch_weights.plan(folder, keep, 40, done, net)
    assert len(planned.epochs) == n
    lacking = f"{format_size(free)} left: none are saved, so report --test-curve will have no curve"
    assert planned.note.endswith(lacking) == (n == 0)


def test_typed_interval_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=159_999))
    found = (
        "train.keep_epochs = 1: the weights of 40 epochs take 160.0 kB, and the disk has 160.0 kB "
        "left.\nFree some space, or type a larger number; --set train.keep_epochs=0 keeps none."
    )
    with pytest.raises(UserError, match=f"^{re.escape(found)}$"):
        epoch_weights.plan(RunFolder(tmp_path), 1, 40, 0, nn.Linear(999, 1))


def test_trial_of_a_sweep_saves_none_by_default(tmp_path: Path) -> None:
    few = ["loss.kd=false", "loss.hard.weight=1", "data.train_images=40", "data.holdout=0.1"]
    for name, overrides in (("default", few), ("typed", [*few, "train.keep_epochs=1"])):
        recipe = recipes.load("tiny", overrides).recipe
        out = tmp_path / name
        list(train_and_test(TrainingRequest("student", recipe, "tiny", out, is_tested=False)))
        assert (out / "epochs").exists() == (name == "typed")


def test_default_is_not_in_the_fingerprint() -> None:
    """Runs of earlier versions have no such key; their fingerprints must stay valid."""
    recipe = recipes.load("tiny").recipe
    text = recipes.dumps(recipe)
    assert 'keep_epochs = "auto"' in text
    earlier = text.replace('keep_epochs = "auto"\n', "")
    assert recipes.loads(earlier, "earlier") == recipe
    content = recipe.model_dump(mode="json", exclude={"about"}, exclude_none=True)
    del content["train"]["keep_epochs"]
    assert recipe_fingerprint(recipe) == fingerprint_of_tables(content)


def test_an_unfinished_run_has_no_test_curve(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match="is not finished"):
        test_curve.measure_epochs(folder)


def test_other_classes_than_the_runs_are_refused(
    keeping: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.test_curve.unlink(missing_ok=True)
    known = keeping.result() | {"class_names": [f"cat {i}" for i in range(10)]}
    monkeypatch.setattr(RunFolder, "result", lambda _: known)
    with pytest.raises(UserError, match=r"has the classes cat 0, cat 1.*; synthetic now has"):
        test_curve.measure_epochs(keeping)


def test_full_disk_does_not_cost_test_curve(
    keeping: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.test_curve.unlink(missing_ok=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(test_curve, "write_json", full)
    assert set(test_curve.measure_epochs(keeping)) == {1, 2}
    assert not keeping.test_curve.exists()
