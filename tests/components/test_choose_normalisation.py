"""The mean and std of a run's images: by data set, by the recipe, and as run folders have them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.components import choose_normalisation
from distill.components.build_network import build_network, load_trained
from distill.data.channel_statistics import mean_and_std
from distill.data.image_set import ImageSet
from distill.data.sources import cifar, load_data_set
from distill.errors import UserError
from distill.events import Start
from distill.recipe import recipes
from distill.recipe.recipe_fingerprint import recipe_fingerprint
from distill.runs import check_runs_match
from students.normalize_images import KNOWN, MEAN, STD
from tests.cli.command_line import RunCli
from tests.make_runs import train

CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
ALONE = (
    "loss.kd=false",
    "loss.hard.weight=1",
    "data.train_images=24",
    "data.holdout=0.25",
    "train.batch_size=8",
)
OWN = "[[0.5, 0.4, 0.3], [0.2, 0.1, 0.3]]"


def noise(published: str | None) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    return ImageSet(pixels, np.arange(20) % 2, ("a", "b"), published)  # type: ignore[arg-type]


def resolved(published: str | None, *overrides: str) -> object:
    recipe = recipes.load("tiny", overrides).recipe
    return choose_normalisation.resolve(recipe, noise(published)).data.normalize


@pytest.mark.parametrize(
    ("published", "typed", "expected"),
    [
        ("cifar10", (), None),
        ("cifar10", ("data.normalize=cifar10",), None),
        ("cifar10", ("data.normalize=cifar100",), "cifar100"),
        ("cifar100", (), "cifar100"),
        ("cifar100", ("data.normalize=cifar10",), "cifar10"),
        (None, ("data.normalize=cifar10",), "cifar10"),
        (None, (), mean_and_std(noise(None).images)),
        ("cifar10", ("data.normalize=computed",), mean_and_std(noise(None).images)),
        ("cifar10", (f"data.normalize={OWN}",), ((0.5, 0.4, 0.3), (0.2, 0.1, 0.3))),
    ],
)
def test_recipe_of_a_run_has_the_values(
    published: str | None, typed: tuple[str, ...], expected: object
) -> None:
    assert resolved(published, *typed) == expected


def test_default_does_not_change_fingerprints() -> None:
    recipe = recipes.load("tiny").recipe
    assert choose_normalisation.resolve(recipe, noise("cifar10")) == recipe
    assert "normalize" not in recipes.dumps(recipe).split("[data]")[1].split("[")[0]
    other = choose_normalisation.resolve(recipe, noise("cifar100"))
    assert recipe_fingerprint(other) != recipe_fingerprint(recipe)
    assert recipes.loads(recipes.dumps(other), "again") == other


def test_published_values_of_each_layout() -> None:
    assert KNOWN == {"cifar10": (MEAN, STD), "cifar100": CIFAR100}
    assert [each.normalised_as for each in cifar.LAYOUTS] == ["cifar10", "cifar100"]
    assert load_data_set.load("synthetic", "train").normalised_as == "cifar10"


def test_cifar10_in_class_folders_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(None)
    monkeypatch.setitem(load_data_set.GENUINE, images.fingerprint, "CIFAR-10, train split")
    assert choose_normalisation.resolve(recipes.load("tiny").recipe, images).data.normalize is None


def test_cifar100_in_class_folders_keeps_computed_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in earlier versions, so that their runs can be resumed."""
    images = noise(None)
    monkeypatch.setitem(load_data_set.GENUINE, images.fingerprint, "CIFAR-100, train split")
    chosen = choose_normalisation.resolve(recipes.load("tiny").recipe, images).data.normalize
    assert chosen == mean_and_std(images.images)


@pytest.mark.parametrize("network", ["resnet20", "wrn-10-1", "vgg8", "timm/resnet18"])
def test_every_network_normalises_by_the_recipe(network: str) -> None:
    overrides = (f"teacher.network={network}", f"data.normalize={OWN}")
    net = build_network(recipes.load("teacher_wrn", overrides).recipe, "teacher", 10)
    mean, std = net.get_buffer("normalize.mean"), net.get_buffer("normalize.std")
    torch.testing.assert_close(mean.flatten(), torch.tensor([0.5, 0.4, 0.3]))
    torch.testing.assert_close(std.flatten(), torch.tensor([0.2, 0.1, 0.3]))


def test_a_subset_keeps_its_data_set() -> None:
    assert load_data_set.subset(noise("cifar100"), [1, 2]).normalised_as == "cifar100"


@pytest.mark.long
def test_run_on_class_folders_keeps_computed_values(
    pets: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run, events = train(tmp_path / "run", *ALONE, f"data.source={pets}")
    expected = mean_and_std(load_data_set.load(str(pets), "train").images)  # held-out ones too
    assert recipes.read(run.recipe).data.normalize == expected
    assert isinstance(events[0], Start)
    numbers = " ".join(f"{value:.4f}" for value in expected[0])
    assert f"data.normalize: images are normalised by mean {numbers} and std" in str(
        events[0].notes
    )
    net = load_trained(run)
    assert net.get_buffer("normalize.mean").flatten().tolist() == pytest.approx(expected[0])
    out, done = tmp_path / "out", ["--format", "project1", "--format", "safetensors"]
    written = run_cli("export", str(run.path), *done, "--out", str(out))
    assert written.code == 0, written.err
    assert "trained on images with another mean and std" in (out / "project1_model.py").read_text()
    # Typed again, the same recipe is that of the run, and so is one that names what it has.
    for typed in ((), ("data.normalize=computed",)):
        train(run.path, *ALONE, f"data.source={pets}", *typed, resume=True)
    assert run_cli("evaluate", str(run.path)).code == 0


def as_earlier_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_normalisation, "resolve", lambda recipe, images: recipe)


@pytest.mark.long
def test_earlier_run_keeps_cifar10_values(pets: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """Runs of earlier versions on other data sets were trained with CIFAR-10's mean and std."""
    overrides = [*ALONE, f"data.source={pets}"]
    with pytest.MonkeyPatch.context() as patch:
        as_earlier_versions(patch)
        run, _ = train(tmp_path / "run", *overrides)
    before = json.loads(run.result_file.read_text())
    assert load_trained(run).get_buffer("normalize.mean").flatten().tolist() == pytest.approx(MEAN)
    assert run_cli("evaluate", str(run.path)).code == 0
    run.result_file.unlink()  # as if it was stopped after its last checkpoint
    train(run.path, *overrides, resume=True)
    after = json.loads(run.result_file.read_text())
    assert recipes.read(run.recipe).data.normalize is None
    changing = ("finished_at", "elapsed_s", "total_s", "weights", "evaluation")
    assert {**before, **dict.fromkeys(changing)} == {**after, **dict.fromkeys(changing)}


@pytest.mark.long
def test_run_is_not_resumed_with_other_values(pets: Path, tmp_path: Path) -> None:
    overrides = [*ALONE, f"data.source={pets}"]
    run, _ = train(tmp_path / "run", *overrides, "data.normalize=cifar10")
    other = recipes.load("tiny", [*overrides, "data.normalize=cifar100"]).recipe
    with pytest.raises(UserError, match='data.normalize: "cifar10" -> "cifar100"'):
        check_runs_match.check_same(run, other)
