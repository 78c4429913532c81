"""The comparison of systems in the same time."""

import json
from pathlib import Path

import pytest

from benchmarks import race
from distill.recipe import recipes
from distill.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow  # a benchmark's script, not the library


def test_every_entry_resolves_under_its_overrides() -> None:
    for entry in race.ENTRIES.values():
        for epochs in (1, 15):
            scaled = race.rescaled(entry, epochs)
            overrides = [*entry.overrides, *scaled, f"train.epochs={epochs}", *race.ALL_IMAGES]
            recipe = recipes.load(entry.recipe, overrides).recipe
            assert recipe.train.epochs == epochs
            assert recipes.has_teacher(recipe) == entry.is_taught


def test_lengths_in_epochs_are_scaled() -> None:
    scaled = race.rescaled(race.ENTRIES["distilled"], 10)  # the recipe: 4 and 1 of 20 epochs
    assert scaled == ["optim.warmup_epochs=2", "ema.half_life=0.5"]


def test_entries_train_in_turn_and_are_tabulated(
    teacher: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    tiny = race.Entry("tiny, distilled", "tiny", is_taught=True)
    alone = race.Entry("tiny, alone", "tiny", ("loss.kd=false", "loss.hard.weight=1.0"))
    monkeypatch.setattr(race, "ENTRIES", {"taught": tiny, "alone": alone})
    monkeypatch.setattr(race, "ROUNDS", 1)
    n_images = RunFolder(teacher).result()["data"]["train_images"]
    monkeypatch.setattr(race, "N_TRAIN", n_images)
    # two epochs of the one; the other is measured
    (tmp_path / "race_speeds.json").write_text(json.dumps({"taught": 2.6 / n_images}))
    folders = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    arguments = ["--teacher", str(teacher), "--minutes", "0.1", *folders]
    race.main(arguments)
    printed = capsys.readouterr().out
    made = json.loads((tmp_path / "race.json").read_text())
    assert [each["name"] for each in made["table"]] == ["taught", "alone"]
    for each in made["table"]:
        low, high = each["interval"]
        assert low < each["top1"] < high
        assert f"| {each['title']} | {each['parameters']:,} | {each['epochs']} |" in printed
        minutes, shares = zip(*each["curve"], strict=True)
        per_epoch = each["minutes_per_epoch"]
        assert minutes == pytest.approx([(e + 1) * per_epoch for e in range(each["epochs"])])
        assert each["epochs"] == max(1, int(0.1 / per_epoch))
        assert shares[-1] == pytest.approx(each["top1"])  # the last epoch is the result
    assert "tiny, distilled" in (tmp_path / "race.svg").read_text()
    race.main([*arguments, "--names", "alone"])  # keeps the other row
    assert json.loads((tmp_path / "race.json").read_text()) == made
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    race.main(arguments)  # finished runs are not repeated
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    assert before == after
