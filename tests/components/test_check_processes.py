"""The processes of a command: their launcher's variables and their inputs."""

from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from distill.components import check_processes
from distill.components.build_accelerator import evaluation_accelerator
from distill.components.check_processes import check_same_inputs, explain_launcher_variables
from distill.errors import UserError

LEFT_OVER = [
    ("ACCELERATE_USE_DEEPSPEED", "true"),
    ("ACCELERATE_DYNAMO_BACKEND", "xx"),
    ("ACCELERATE_TORCH_DEVICE", "meta"),
    ("ACCELERATE_USE_CPU", "maybe"),
    ("WORLD_SIZE", "abc"),
    ("WORLD_SIZE", ""),
    ("LOCAL_RANK", "x"),
]


@pytest.mark.parametrize(("name", "value"), LEFT_OVER)
def test_invalid_launcher_variable_is_named(
    name: str, value: str, fresh_accelerate: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        evaluation_accelerator()
    found, advice = str(refused.value).splitlines()
    assert f"{name}={value}" in found
    assert advice.startswith("Remove those that are not meant: unset ") and name in advice


def test_lost_process_is_not_launcher_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="Read timeout"), explain_launcher_variables():
        raise RuntimeError("Read timeout")


def of_processes(monkeypatch: pytest.MonkeyPatch, *found: dict[str, str]) -> Accelerator:
    """An accelerator of as many processes, which have these fingerprints."""
    monkeypatch.setattr(check_processes, "gather_object", lambda own: [*own, *found[1:]])
    return SimpleNamespace(num_processes=len(found))  # type: ignore[return-value]


def test_different_inputs_are_named_with_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"data": "d" * 64, "teacher": ""}
    other = {"data": "e" * 64, "teacher": ""}
    accel = of_processes(monkeypatch, same, other, same)
    with pytest.raises(UserError) as refused:
        check_same_inputs(accel, lambda: same)
    first, data, advice = str(refused.value).splitlines()
    assert first == "the processes have different inputs:"
    assert data == "  data: dddddddddddd in processes 0, 2; eeeeeeeeeeee in process 1"
    assert advice.startswith("Give all processes the same files")


def test_equal_inputs_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    check_same_inputs(
        of_processes(monkeypatch, {"data": "d"}, {"data": "d"}), lambda: {"data": "d"}
    )


def test_single_process_computes_no_fingerprint() -> None:
    def fail() -> dict[str, str]:
        raise AssertionError

    check_same_inputs(SimpleNamespace(num_processes=1), fail)  # type: ignore[arg-type]
