"""`data info`: counts, names, genuine images and faults."""

import json
import re
import shutil
from pathlib import Path

import pytest

from distill.data.sources import download, load_data_set
from tests.cli.command_line import RunCli, assert_refused, write_batches


def test_info_counts_and_names(run_cli: RunCli, pets: Path) -> None:
    result = run_cli("data", "info", pets, "--json")
    facts = json.loads(result.out)
    assert result.code == 0
    assert (facts["train_images"], facts["test_images"], facts["classes"]) == (32, 16, 2)
    assert facts["class_names"] == ["cat", "dog"]
    assert facts["train_fingerprint"] == load_data_set.load(str(pets), "train").fingerprint
    assert facts["genuine"] == "no"
    assert facts["faults"] == []
    result = run_cli("data", "info", "--data", pets)
    assert re.search(r"^class_names +cat, dog$", result.out, re.MULTILINE)
    assert re.findall(r"^.*genuine.*$", result.out, re.MULTILINE) == ["genuine               no"]


def test_info_knows_the_genuine_images(
    run_cli: RunCli, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = (load_data_set.load(str(pets), split).fingerprint for split in ("train", "test"))
    monkeypatch.setattr(
        load_data_set, "GENUINE", {train: "PETS, train split", test: "PETS, test split"}
    )
    assert load_data_set.info(str(pets))["genuine"] == "PETS, train split; PETS, test split"
    monkeypatch.setattr(load_data_set, "GENUINE", {train: "PETS, train split"})
    assert load_data_set.info(str(pets))["genuine"] == "PETS, train split; test: no"


@pytest.mark.parametrize("into", [[], ["--into", "store"]])
def test_fetch_downloads_nothing_that_is_there(
    run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, into: list[str]
) -> None:
    folder = write_batches(Path("store" if "store" in into else "data"))
    names = {
        load_data_set.load(str(folder), split).fingerprint: split for split in load_data_set.SPLITS
    }
    monkeypatch.setattr(load_data_set, "GENUINE", names)
    monkeypatch.setattr(download.Download, "run", lambda *_: pytest.fail("downloads"))
    result = run_cli("data", "fetch", *into)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{folder}: CIFAR-10, every image; nothing was downloaded\n"


def test_info_describes_an_incomplete_set(run_cli: RunCli, pets: Path) -> None:
    shutil.rmtree(pets / "test")
    result = run_cli("data", "info", pets, "--json")
    facts = json.loads(result.out)
    assert (result.code, facts["train_images"]) == (2, 32)
    assert "test_images" not in facts
    (fault,) = facts["faults"]
    assert fault.startswith(f"1 fault in {pets}:\n  test/: missing")
    assert result.err.endswith(f"{fault}\n")
    assert "Traceback" not in result.err


def test_info_of_unreadable_set_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "set")
    (folder / "batches.meta").unlink()
    result = run_cli("data", "info", folder)
    assert result.err.count("batches.meta: missing") == 1
    assert_refused(result, f"1 fault in {folder}")
