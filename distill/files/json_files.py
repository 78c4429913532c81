"""Read a run's JSON files: bounded in size and depth, validated by schemas.

result.json, environment.json, test_curve.json, running.json and the progress.json of a checkpoint
may come from anybody. Keys that a schema does not name are accepted, so that a later version may
add some. A key that is missing is an error only if it is needed.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from distill.errors import UserError

LARGEST = 16 << 20  # bytes of a file; result.json of 1,000 classes has about 30 kB
DEEPEST = 32  # levels of lists and tables within each other; ours have 3
LARGEST_INTEGER = 2**63 - 1
LONGEST_REASON = 200  # characters
RETRAIN = "Bring the file back, or train that run again in another --out."

Text = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]


OPEN = ConfigDict(strict=True, extra="allow")  # no conversions; unknown keys are accepted


class Invalid(ValueError):
    """Text that is not JSON, or JSON that is not what the file should hold.

    `syntax`: what is wrong and at which column if it is not JSON, else empty.
    """

    def __init__(self, reason: str, syntax: str = "") -> None:
        super().__init__(reason)
        self.syntax = syntax


class DataOfResult(BaseModel):
    """`data` in result.json."""

    model_config = OPEN

    source: Text
    fingerprint: Text
    train_images: Count
    val_images: Count


class TeacherOfResult(BaseModel):
    """`teacher` in result.json; `top1` is None if no teacher was used."""

    model_config = OPEN

    runs: list[Text]
    fingerprint: Text
    top1: Share | None


class Result(BaseModel):
    """result.json."""

    model_config = OPEN

    role: Literal["teacher", "student"]
    recipe: Text
    recipe_fingerprint: Text
    network: Text
    parameters: Count
    class_names: list[Text]
    data: DataOfResult
    teacher: TeacherOfResult
    epoch: Count
    epochs: Count
    metrics: dict[str, float]
    elapsed_s: Seconds
    device: Text
    precision: Text
    processes: Count
    weights: Text
    evaluation: Text
    finished_at: Text

    @field_validator("metrics")
    @classmethod
    def _shares_are_shares(cls, metrics: dict[str, float]) -> dict[str, float]:
        for name, value in metrics.items():
            measure = name.partition("/")[0]
            is_unknown = measure == "ece" and math.isnan(value)  # of logits that are no numbers
            if measure in ("top1", "ece") and not (0 <= value <= 1 or is_unknown):
                raise ValueError(f"{name[:40]} = {value} is not between 0 and 1")
        return metrics

    @field_validator("finished_at")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        try:
            datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            raise ValueError("it is not a time in ISO 8601") from None
        return text


class Environment(BaseModel):
    """environment.json."""

    model_config = OPEN

    command: list[Text]
    packages: dict[str, Text | None]
    recipe_origins: dict[str, Text]
    source: Text
    sources: list[Text]  # every hash, if the source changed before a resume


class BestOfProgress(BaseModel):
    """`best` in progress.json; `epoch` is part of a file name."""

    model_config = ConfigDict(strict=True, extra="forbid")

    epoch: Count
    metrics: dict[str, float]
    weights: Text


class Progress(BaseModel):
    """progress.json of a checkpoint."""

    model_config = OPEN

    step: Count
    epoch: Count
    total_steps: Count
    compiled: bool
    elapsed_s: Seconds
    retries: Count
    lr_factor: Annotated[float, Field(ge=0, le=1)]
    best: BestOfProgress


TEST_CURVE = TypeAdapter(dict[str, dict[str, float]], config=ConfigDict(strict=True))


class JsonObject(dict[str, Any]):
    """A JSON object that names its file if a key is missing. Raises UserError then."""

    def __init__(self, content: Mapping[str, Any], path: Path, name: str = "") -> None:
        super().__init__(
            {
                key: JsonObject(value, path, f"{name}{key}.") if isinstance(value, dict) else value
                for key, value in content.items()
            }
        )
        self.path, self.name = path, name

    def __missing__(self, key: str) -> Any:
        raise UserError(
            f"{self.path} has no {self.name + key!r}: another version wrote it, or it is damaged.\n"
            "Train that run again in another --out."
        )

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def result(path: Path) -> JsonObject:
    """result.json. Raises UserError if it cannot be read or is damaged."""
    return JsonObject(_checked(path, Result, RETRAIN), path)


def environment(path: Path) -> dict[str, Any]:
    """environment.json. Raises UserError as `result`."""
    return _checked(path, Environment, "Delete it: the report works without it.")


def test_curve(path: Path) -> dict[str, dict[str, float]]:
    """test_curve.json: measures by sha256 of the weights. Raises UserError as `result`."""
    advice = "Delete it: what it holds is measured again."
    content = read(path, advice)
    try:
        return TEST_CURVE.validate_python(content)
    except ValidationError as fault:
        raise damaged(path, _reason(fault), advice) from None


def progress(path: Path) -> dict[str, Any]:
    """progress.json of a checkpoint. Raises UserError as `result`."""
    return _checked(path, Progress, "Choose another --out.")


def read(path: Path, advice: str = RETRAIN) -> Any:
    """The JSON value in a file. Raises UserError if it cannot be read; `advice` ends it."""
    try:
        return parsed(content_of(path))
    except Invalid as fault:
        raise damaged(path, str(fault), advice) from None
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror or fault}.\n{advice}") from fault


def damaged(path: Path, reason: str, advice: str = RETRAIN) -> UserError:
    """The message about a file that does not hold what it should."""
    return UserError(f"{path} is damaged: {reason}.\n{advice}")


def content_of(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file. Raises OSError, and Invalid for a pipe, a device or a file of
    more than `largest` bytes.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Invalid("it is not a regular file")
        content = file.read(largest + 1)
    if len(content) > largest:
        raise Invalid(f"it has more than {largest:,} bytes")
    return content


def _without_waiting(path: str, flags: int) -> int:
    """Opens with O_NONBLOCK: opening a pipe that has no writer would block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parsed(text: bytes | str) -> Any:
    """The JSON value of a text. Raises Invalid for text that is not JSON, that is nested too
    deeply, or that holds an integer beyond 64 bits or half of a surrogate pair, other than those by
    which Python names the bytes of file names that are not UTF-8.
    """
    try:
        value = json.loads(text, parse_int=_integer)
        if not _is_shallow(value):
            raise RecursionError
        json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    except RecursionError:
        raise Invalid(f"it is nested more than {DEEPEST} levels deep") from None
    except json.JSONDecodeError as fault:
        syntax = f"{fault.msg} at column {fault.colno}"
        raise Invalid(f"it is not JSON ({syntax})", syntax) from None
    except UnicodeError:
        raise Invalid("it is not text in UTF-8") from None
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > LARGEST_INTEGER:
        raise Invalid("it has an integer of more than 64 bits")
    return int(text)


def _is_shallow(value: Any) -> bool:
    """Whether nothing is nested more than DEEPEST levels deep; without recursion."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return True
    return False


def check(model: type[BaseModel], value: Any) -> None:
    """The value has the types of `model`, as far as its keys are there. Raises Invalid."""
    if not isinstance(value, dict):
        raise Invalid(f"it holds {_called(value)} instead of a table")
    try:
        model.model_validate(value)
    except ValidationError as fault:
        if reason := _reason(fault):
            raise Invalid(reason) from None


def _called(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _checked(path: Path, model: type[BaseModel], advice: str) -> dict[str, Any]:
    value = read(path, advice)
    try:
        check(model, value)
    except Invalid as fault:
        raise damaged(path, str(fault), advice) from None
    known: dict[str, Any] = value
    return known


def _reason(fault: ValidationError) -> str:
    """The first error that is not a missing key, nor a name that is not UTF-8, which pydantic does
    not take for text; empty if there is none.
    """
    for error in fault.errors(include_url=False, include_input=False, include_context=False):
        if error["type"] not in ("missing", "string_unicode"):
            place = ".".join(map(str, error["loc"]))[:60]
            message = error["msg"].removeprefix("Value error, ")
            return f"{place!r}: {message}"[:LONGEST_REASON] if place else message[:LONGEST_REASON]
    return ""
