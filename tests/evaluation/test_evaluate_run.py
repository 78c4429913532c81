"""Evaluate a finished run: saved predictions, new ones, and absent figures."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from distill.components.build_network import build_design, load_trained
from distill.data.corruptions.catalogue import CORRUPTIONS, SEVERITIES, corrupt
from distill.data.sources import load_data_set
from distill.errors import UserError
from distill.evaluation import accuracy_and_calibration, evaluate_run, robustness
from distill.evaluation.evaluate_run import EvalOptions
from distill.evaluation.predict_split import FlipTTA, SixViewTTA, logits_and_labels
from distill.evaluation.write_results import matching_arrays, read_evaluation, write_evaluation
from distill.format import percent
from distill.metrics import measures
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder, file_sha256, write_json
from distill.statistics import fit_temperature

HELD_OUT = 600  # a tenth of the procedural training images


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    """The procedural images are drawn and hashed once for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        load = cache(load_data_set.load)
        patch.setattr(
            load_data_set,
            "load",
            lambda source, split, size=None, progress=None: load(source, split),
        )
        yield


@pytest.fixture(scope="module")
def saved(distilled) -> dict[str, np.ndarray]:
    with np.load(distilled[0].evaluation) as file:
        return dict(file)


@pytest.fixture(scope="module")
def measured(distilled) -> dict:
    return evaluate_run.evaluate_run(distilled[0])


def copied(distilled, to: Path, **changes: object) -> RunFolder:
    """The student's run elsewhere, these keys of its result.json otherwise."""
    shutil.copytree(distilled[0].path, to)
    folder = RunFolder(to)
    write_json(folder.result_file, folder.result() | changes)
    return folder


@pytest.mark.long
def test_run_saves_predictions_of_held_out_images(distilled, saved) -> None:
    assert saved["val_logits"].shape == (HELD_OUT, 10)
    right = (saved["val_logits"].argmax(1) == saved["val_labels"]).mean()
    assert right == distilled[0].result()["metrics"]["top1/val_ema"]


def test_run_without_hold_out_saves_no_such_predictions(distilled, tmp_path) -> None:
    some = load_data_set.subset(load_data_set.load("synthetic", "test"), np.arange(9))
    write_evaluation(RunFolder(tmp_path), some, torch.randn(9, 10), None, None)
    with np.load(tmp_path / "evaluation.npz") as file:
        assert set(file.files) == {"logits", "labels", "mistakes", "mistake_pixels"}


@pytest.mark.long
def test_figures_match_the_saved_predictions(measured, saved) -> None:
    logits, labels = (saved[name] for name in ("logits", "labels"))
    wanted = accuracy_and_calibration.headline_measures(logits, labels)
    for name in ("top1", "top5", "nll", "ece", "top1_interval", "nll_interval"):
        assert measured[name] == pytest.approx(wanted[name], rel=1e-5), name
    fitted = fit_temperature(saved["val_logits"], saved["val_labels"])
    assert measured["temperature"] == pytest.approx(fitted, rel=1e-5)
    by_hand = (saved["logits"].argmax(1) == saved["teacher_logits"].argmax(1)).mean()
    assert measured["teacher_agreement"] == pytest.approx(by_hand)
    assert np.trace(measured["confusion"]) / measured["n"] == measured["top1"]
    assert sum(each["n"] for each in measured["per_class"]) == measured["n"] == 2000
    assert measured["macs"] == build_design(recipe_of_tiny(), 10).macs
    assert measured["absent"] == {}
    assert json.loads(json.dumps(measured)) == measured


def recipe_of_tiny():
    return recipes.load("tiny").recipe


@pytest.mark.long
def test_run_of_earlier_version_is_predicted_again(distilled, measured, tmp_path) -> None:
    folder = copied(distilled, tmp_path / "run")
    folder.evaluation.unlink()
    again = evaluate_run.evaluate_run(folder)
    for name in ("temperature", "nll_calibrated", "teacher_agreement", "teacher_kl"):
        assert again[name] == pytest.approx(measured[name], rel=1e-4), name


def test_saved_predictions_of_other_weights_are_not_used(distilled, saved) -> None:
    known, logits = read_evaluation(distilled[0]), saved["logits"]
    assert matching_arrays(known, logits + 1e-5).keys() == saved.keys()
    assert matching_arrays(known, logits[::-1]) == {}
    assert matching_arrays(known, logits[1:]) == {}
    assert matching_arrays(None, logits) == {}


def test_absent_or_damaged_predictions_are_not_read(distilled, tmp_path) -> None:
    folder = copied(distilled, tmp_path / "run")
    intact = folder.evaluation.read_bytes()
    for damaged in (b"no archive", intact[:5000]):
        folder.evaluation.write_bytes(damaged)
        assert read_evaluation(folder) is None
    folder.evaluation.unlink()
    assert read_evaluation(folder) is None


def forged(run: RunFolder, logits: np.ndarray) -> RunFolder:
    """The run with these predictions in its files, which agree with each other."""
    arrays = dict(np.load(run.evaluation)) | {"logits": logits}
    np.savez_compressed(run.evaluation, **arrays)
    found = {f"{name}/test": value for name, value in measures(logits, arrays["labels"]).items()}
    result = run.result()
    changes = {"metrics": result["metrics"] | found, "evaluation": file_sha256(run.evaluation)}
    write_json(run.result_file, result | changes)
    assert read_evaluation(run) is not None
    return run


@pytest.mark.long
def test_forged_predictions_are_refused(distilled, saved, tmp_path) -> None:
    """Once with another accuracy, once with other images right and the same accuracy."""
    logits, labels = saved["logits"], saved["labels"]
    perfect = forged(copied(distilled, tmp_path / "a"), np.eye(10, dtype="f4")[labels])
    top1 = percent((logits.argmax(1) == labels).mean())
    message = rf"a/result.json has top1/test = 100.00 %, but its network, .* has {top1}"
    with pytest.raises(UserError, match=message):
        evaluate_run.evaluate_run(perfect)
    with pytest.raises(UserError, match=message):
        evaluate_run.evaluate_run(distilled[0], EvalOptions(against=perfect.path))
    other = logits.copy()
    for label in range(10):  # each class's images in another order
        images = np.flatnonzero(labels == label)
        other[images] = logits[np.roll(images, 1)]
    with pytest.raises(UserError, match=r"b/evaluation.npz has other predictions .* of 2,000 ima"):
        evaluate_run.evaluate_run(forged(copied(distilled, tmp_path / "b"), other))


@pytest.mark.long
def test_rounding_of_other_hardware_is_accepted(distilled, saved, tmp_path) -> None:
    logits = saved["logits"].copy()
    logits[:4] = logits[:4, ::-1]  # at most 4 of 2,000 images with another prediction
    found = evaluate_run.evaluate(forged(copied(distilled, tmp_path / "a"), logits))
    assert found.measures["top1"] == distilled[0].result()["metrics"]["top1/test"]
    [fresh] = found.predictions.values()
    assert np.allclose(fresh.logits, saved["logits"], atol=1e-5)


@pytest.mark.long
def test_run_without_hold_out_has_no_temperature(distilled, tmp_path) -> None:
    data = distilled[0].result()["data"] | {"val_images": 0}
    found = evaluate_run.evaluate_run(copied(distilled, tmp_path / "run", data=data))
    assert [found[name] for name in evaluate_run.CALIBRATED] == [None] * 3
    assert "data.holdout = 0: nothing was held out" in found["absent"]["temperature"]


@pytest.mark.long
def test_missing_hold_out_images_are_named(distilled, tmp_path) -> None:
    data = distilled[0].result()["data"] | {"fingerprint": "other"}
    folder = copied(distilled, tmp_path / "run", data=data)
    folder.evaluation.unlink()
    reason = evaluate_run.evaluate_run(folder)["absent"]["temperature"]
    assert reason == "the images that the run held out are no longer in synthetic"


@pytest.mark.long
def test_missing_or_changed_teacher_is_not_compared(distilled, tmp_path) -> None:
    known = distilled[0].result()["teacher"]
    folder, result = copied(distilled, tmp_path / "run"), distilled[0].result()
    folder.evaluation.unlink()
    shutil.copytree(known["runs"][0], tmp_path / "bare")
    (tmp_path / "bare" / "teacher.safetensors").unlink()
    for change, reason in (
        ({"runs": [str(tmp_path / "bare")]}, "teacher.safetensors cannot be read as weights"),
        ({"runs": [str(tmp_path / "gone")]}, f"{tmp_path / 'gone'} is not a run"),
        (
            {"fingerprint": "other"},
            f"{known['runs'][0]} has other weights than during the training",
        ),
        ({"runs": []}, "this run had no teacher"),
    ):
        write_json(folder.result_file, result | {"teacher": known | change})
        found = evaluate_run.evaluate_run(folder)
        assert [found[name] for name in evaluate_run.TAUGHT] == [None, None]
        assert reason in found["absent"]["teacher_agreement"]


@pytest.mark.long
def test_a_teacher_is_measured_too_and_counted(teacher) -> None:
    found = evaluate_run.evaluate_run(RunFolder(teacher))
    assert found["role"] == "teacher"
    # WRN-10-1: a stem of 3 to 16, then three blocks, two of them with a stride and all but the
    # first with a skip of 1x1; a linear layer of 64 to 10.
    stem, first = 1024 * 27 * 16, 2 * 1024 * 144 * 16
    second = 256 * (144 * 32 + 288 * 32 + 16 * 32)
    third = 64 * (288 * 64 + 576 * 64 + 32 * 64)
    assert found["macs"] == stem + first + second + third + 640
    assert found["absent"]["teacher_agreement"] == "this run had no teacher"


@pytest.mark.long
def test_image_and_mirror_have_equal_predictions(distilled, measured) -> None:
    net = load_trained(distilled[0])
    images = torch.from_numpy(load_data_set.load("synthetic", "test").images[:8]) / 255
    with torch.no_grad():
        both = FlipTTA(net)(images)
        assert torch.allclose(both, FlipTTA(net)(images.flip(-1)), atol=1e-5)
        assert torch.allclose(both, (net(images) + net(images.flip(-1))) / 2, atol=1e-6)
    found = evaluate_run.evaluate_run(distilled[0], EvalOptions(mirror=True))
    assert found["mirror"]["nll"] != found["nll"]
    assert "mirror" not in measured
    assert {name: found[name] for name in measured} == measured, "the headline must be the same"


def test_six_views_are_weighted_mean_of_their_formula() -> None:
    """airbench94's multi-crop, with positions read by index and each view's logits summed."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    images = torch.rand(4, 3, 32, 32)
    here = list(range(32))
    up_left = [*range(1, 32), 30]  # position p shows p + 1; what comes in is reflected
    down_right = [1, *range(31)]
    expected = torch.zeros(4, 10)
    for positions, weight in ((here, 0.5), (up_left, 0.25), (down_right, 0.25)):
        shifted = images[:, :, positions][:, :, :, positions]
        for view in (shifted, shifted[..., list(reversed(here))]):
            expected += weight / 2 * net(view)
    assert torch.allclose(SixViewTTA(net)(images), expected, atol=1e-5)
    assert not torch.allclose(FlipTTA(net)(images), expected, atol=1e-3)
    assert not SixViewTTA(net.eval()).training


@pytest.mark.long
def test_six_views_leave_the_headline_alone(distilled, measured) -> None:
    found = evaluate_run.evaluate_run(distilled[0], EvalOptions(six_views=True))
    augmented = found["test_time_augmentation"]
    net, test = SixViewTTA(load_trained(distilled[0])), load_data_set.load("synthetic", "test")
    right = logits_and_labels(net, test, Accelerator())[0].argmax(1) == torch.from_numpy(
        test.labels
    )
    assert augmented["views"] == 6
    assert augmented["top1"] == pytest.approx(right.float().mean().item())
    assert augmented["nll"] != found["nll"]
    assert {name: found[name] for name in measured} == measured
    assert "mirror" not in found and "test_time_augmentation" not in measured


@pytest.mark.long
def test_a_run_against_its_teacher(distilled, teacher, saved) -> None:
    found = evaluate_run.evaluate_run(distilled[0], EvalOptions(against=teacher))["against"]
    ours, theirs = (saved[n].argmax(1) == saved["labels"] for n in ("logits", "teacher_logits"))
    assert (found["only_a"], found["only_b"]) == ((ours & ~theirs).sum(), (theirs & ~ours).sum())
    assert found["both"] == (ours & theirs).sum()
    assert found["run"] == str(teacher)
    assert found["top1"] == theirs.mean()


@pytest.mark.long
def test_runs_of_different_test_splits_are_not_compared(distilled, tmp_path, monkeypatch) -> None:
    folder = copied(distilled, tmp_path / "run")
    folder.recipe.write_text(folder.recipe.read_text().replace('"synthetic"', '"elsewhere"'))
    test = load_data_set.load("synthetic", "test")
    fewer = load_data_set.subset(test, np.arange(1999))
    monkeypatch.setattr(
        evaluate_run,
        "test_split",
        lambda name, size, progress: fewer if name == "elsewhere" else test,
    )
    with pytest.raises(UserError, match="have different test splits: synthetic .* and elsewhere"):
        evaluate_run.evaluate_run(distilled[0], EvalOptions(against=folder.path))
    same = evaluate_run.evaluate_run(
        distilled[0], EvalOptions(data="synthetic", against=folder.path)
    )["against"]
    assert (same["p"], same["better"], same["only_a"]) == (1.0, None, 0)


@pytest.mark.long
def test_robustness_is_the_accuracy_on_corrupted_images(distilled) -> None:
    net = load_trained(distilled[0])
    test, chosen = load_data_set.load("synthetic", "test"), robustness._random_indices(2000, 33)
    images, labels = test.images[chosen], torch.from_numpy(test.labels[chosen])

    def right(pixels: np.ndarray) -> float:
        with torch.no_grad():
            classes = net(torch.from_numpy(pixels) / 255).argmax(1)
        return (classes == labels).double().mean().item()

    by_hand = {
        name: [right(corrupt(images, name, severity, samples=chosen)) for severity in SEVERITIES]
        for name in CORRUPTIONS
    }
    found = robustness.robustness(net, test, Accelerator(), 33)
    assert (found["n"], found["left_out"]) == (33, ["frost"])
    assert found["clean"] == pytest.approx(right(images))
    assert found["accuracy"].keys() == CORRUPTIONS.keys()
    for name, accuracies in by_hand.items():
        assert found["accuracy"][name] == pytest.approx(accuracies), name
    assert found["mean_error"] == pytest.approx(1 - np.mean(list(by_hand.values())))


@pytest.mark.long
def test_fewer_images_are_the_same_ones_corrupted_alike(distilled) -> None:
    test = load_data_set.load("synthetic", "test")
    chosen = robustness._random_indices(2000, 33)
    assert len(set(chosen)) == 33 and (np.diff(chosen) > 0).all() and chosen[-1] > 1500
    assert set(chosen) < set(robustness._random_indices(2000, 64))
    assert np.array_equal(robustness._random_indices(5, 9), np.arange(5))
    rows = np.arange(1, 33, 2)  # those of the second of two processes
    part = load_data_set.subset(test, chosen)
    found = robustness._corrupt(chosen, "gaussian_noise", 5, part.images[rows], rows)
    whole = corrupt(test.images, "gaussian_noise", 5, samples=np.arange(2000))
    assert np.array_equal(found, whole[chosen[rows]])


class Rank:
    """What is asked of an accelerator, for one of two processes that are run after each other."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, process_index: int, gathered: list[torch.Tensor]) -> None:
        self.process_index, self.gathered = process_index, gathered

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        self.gathered.append(mine)
        return torch.cat([self.gathered[0], self.gathered[-1]])  # the first has only itself


@pytest.mark.parametrize("n", [33, 34])
def test_two_processes_corrupt_and_mirror_the_same_images(distilled, n: int) -> None:
    net = FlipTTA(load_trained(distilled[0]))
    some = load_data_set.subset(load_data_set.load("synthetic", "test"), np.arange(n))
    change = partial(robustness._corrupt, np.arange(n), "shot_noise", 5)
    alone = logits_and_labels(net, some, Accelerator(), change=change)
    gathered: list[torch.Tensor] = []
    for rank in (0, 1):
        together = logits_and_labels(net, some, Rank(rank, gathered), change=change)  # type: ignore[arg-type]
    assert torch.allclose(together[0], alone[0], atol=1e-5)
    assert torch.equal(together[1], alone[1])


def test_images_are_changed_before_they_are_seen(distilled) -> None:
    net, test = load_trained(distilled[0]), load_data_set.load("synthetic", "test")
    some = load_data_set.subset(test, np.arange(9))
    flipped = replace(some, images=some.images[..., ::-1].copy())
    seen, labels = logits_and_labels(
        net, some, Accelerator(), change=lambda images, rows: images[..., ::-1].copy()
    )
    wanted, _ = logits_and_labels(net, flipped, Accelerator())
    assert torch.equal(seen, wanted)
    assert np.array_equal(labels, some.labels)


@pytest.mark.long
def test_measurements_do_not_depend_on_each_other(
    distilled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror, a stop-watch and a corruption, one after the other, on one network."""
    monkeypatch.setattr(robustness, "CORRUPTIONS", {"contrast": CORRUPTIONS["contrast"]})
    monkeypatch.setattr(evaluate_run.cost, "ENOUGH_S", 0.01)
    alone = evaluate_run.evaluate_run(
        distilled[0], EvalOptions(robustness=True, robustness_images=50)
    )
    together = evaluate_run.evaluate_run(
        distilled[0], EvalOptions(mirror=True, latency=True, robustness=True, robustness_images=50)
    )
    assert together["robustness"] == alone["robustness"]


@pytest.mark.long
def test_processes_compare_test_split_and_run(
    distilled: tuple[RunFolder, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str]] = []
    monkeypatch.setattr(evaluate_run, "check_same_inputs", lambda _, prints: found.append(prints()))
    evaluate_run.evaluate_run(distilled[0])
    [prints] = found
    data = distilled[0].result()["data"]
    assert prints["test split"] == data["test_fingerprint"]
    assert prints["class names"] == data["class_names_fingerprint"]
    assert prints["run"] == file_sha256(distilled[0].result_file)
