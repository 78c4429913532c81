"""Weights and checkpoints from elsewhere: refused by a message before they take memory."""

import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from distill.errors import UserError
from distill.models import checkpoint, epoch_weights, torch_files
from distill.models.checkpoint import DamagedCheckpoint
from distill.runs.run_folder import RunFolder

PROGRESS = {
    "role": "student", "step": 1, "epoch": 0, "total_steps": 10, "compiled": False,
    "elapsed_s": 2.0, "retries": 0, "lr_factor": 1.0,
    "best": {"epoch": 0, "metrics": {}, "weights": ""}, "format": checkpoint.FORMAT,
}  # fmt: skip
BIG = 200_000_000


def written(folder: Path, state: bytes) -> Path:
    """A checkpoint whose digest is right."""
    described = PROGRESS | {"sha256": checkpoint.digest_of(state, PROGRESS)}
    (folder / "state.pt").write_bytes(state)
    (folder / "progress.json").write_text(json.dumps(described))
    return folder


def archive(pickled: bytes, method: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as members:
        members.writestr("archive/data.pkl", pickled)
        members.writestr("archive/version", "3\n")
        members.writestr("archive/byteorder", "little")
        for name, content in records.items():
            members.writestr(f"archive/data/{name}", content)
    return file.getvalue()


def call_of(module: str, name: str) -> bytes:
    """A pickle that calls a function with a large number."""
    return (
        b"\x80\x02c%s\n%s\n" % (module.encode(), name.encode())
        + b"\x8a\x05" + BIG.to_bytes(5, "little") + b"\x85R."
    )  # fmt: skip


def saved(tensors: object, method: int) -> bytes:
    """What torch writes, its records stored by another method."""
    file, other = io.BytesIO(), io.BytesIO()
    torch.save(tensors, file)
    with zipfile.ZipFile(file) as members, zipfile.ZipFile(other, "w", method) as copy:
        for member in members.infolist():
            copy.writestr(member.filename, members.read(member))
    return other.getvalue()


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        (archive(call_of("builtins", "bytearray")), "tries to run code.*: builtins.bytearray"),
        (archive(call_of("__builtin__", "bytearray")), "tries to run code.*: __builtin__.bytear"),
        (archive(b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93."), "tries to run code"),
        (archive(b"]" * (torch_files.LARGEST_PICKLE + 1)), "describes its tensors in more than"),
        (saved({"a": torch.zeros(1000)}, zipfile.ZIP_DEFLATED), "has compressed records"),
        (call_of("builtins", "bytearray"), "is not what torch.save writes"),
    ],
    ids=["builtins", "builtin", "stack", "long", "deflated", "legacy"],
)
def test_state_that_takes_memory_is_refused(tmp_path: Path, state: bytes, fault: str) -> None:
    written(tmp_path, state)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedCheckpoint, match=fault):
            checkpoint.load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < BIG // 2
    finally:
        tracemalloc.stop()


@pytest.mark.long
def test_sparse_state_is_not_held_in_memory(tmp_path: Path) -> None:
    (written(tmp_path, b"") / "state.pt").write_bytes(b"")
    with open(tmp_path / "state.pt", "r+b") as file:
        file.truncate(2 * BIG)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedCheckpoint, match="its sha256 is not the one"):
            checkpoint.load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < BIG // 2
    finally:
        tracemalloc.stop()


def test_state_that_torch_wrote_is_loaded(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    tensors = {"student": network.state_dict(), "optimizer": optimizer.state_dict()}
    tensors["student"]["half"] = torch.ones(2, dtype=torch.float16)
    checkpoint.save(tmp_path / "last", tensors, PROGRESS)
    loaded, _ = checkpoint.load(tmp_path / "last")
    assert loaded["student"].keys() == tensors["student"].keys()
    assert torch.equal(loaded["student"]["0.weight"], network[0].weight)


@pytest.mark.parametrize(
    "dtype", ["complex64", "float64", "int64", "float8_e8m0fnu", "float4_e2m1fn_x2"]
)
def test_weights_of_another_type_are_refused(tmp_path: Path, dtype: str) -> None:
    weights = {"weight": of_type(dtype), "bias": torch.zeros(2)}
    (tmp_path / "a.safetensors").write_bytes(save(weights))
    with pytest.raises(
        UserError, match=r"a.safetensors (does not hold|cannot be read as) .*weights"
    ):
        checkpoint.load_weights(tmp_path / "a.safetensors", nn.Linear(2, 2))


def of_type(name: str) -> Tensor:
    """[2, 2] elements of that type; [2, 1] bytes of two elements each for a type of 4 bits."""
    dtype: torch.dtype = getattr(torch, name)
    if name.startswith("float4"):
        return torch.zeros(2, 1, dtype=torch.uint8).view(dtype)
    return torch.ones(2, 2).to(dtype)


def test_epoch_file_of_another_name_is_ignored(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    names = ["x", "2", "-1", "0", "02", "9" * 30, "²", "10"]
    folder.epochs.mkdir()
    for name in names:
        (folder.epochs / f"epoch-{name}.safetensors").write_bytes(b"")
    assert epoch_weights.saved_epochs(folder) == [2, 10]
    epoch_weights.delete_after(folder, 2)
    assert epoch_weights.saved_epochs(folder) == [2]
    assert len([*folder.epochs.iterdir()]) == len(names) - 1


@pytest.mark.parametrize("name", ["last.old", "last.new"])
def test_saving_deletes_no_foreign_file(tmp_path: Path, name: str) -> None:
    for step in range(3):
        checkpoint.save(tmp_path / "last", {}, PROGRESS | {"step": step})
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / "mine").write_text("mine")
    with pytest.raises(OSError, match=rf"Not a checkpoint's file: .*{name}/mine"):
        checkpoint.save(tmp_path / "last", {}, PROGRESS)
    assert (tmp_path / name / "mine").read_text() == "mine"
    assert checkpoint.load(tmp_path / "last")[1]["step"] == 2


def test_another_format_is_shown_escaped_and_shortened(tmp_path: Path) -> None:
    progress = PROGRESS | {"format": "3\n\x1b[31mrm" + "x" * 1000}
    (tmp_path / "state.pt").write_bytes(b"")
    described = progress | {"sha256": checkpoint.digest_of(b"", progress)}
    (tmp_path / "progress.json").write_text(json.dumps(described))
    with pytest.raises(UserError) as caught:
        checkpoint.load(tmp_path)
    assert "checkpoint of format 3\\n\\x1b[31mrmxxxx" in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 200
