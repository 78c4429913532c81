"""Read a run's JSON files: limit their size and depth, validate them by schemas.

result.json, environment.json, test_curve.json, running.json and a checkpoint's progress.json are
untrusted. Keys that a schema does not have are accepted, so that a later version can add keys. A
missing key is an error only when the program reads it.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from distill.errors import UserError
from distill.events import MEASURES, VALIDATED
from distill.files import regular_file
from distill.files.regular_file import InvalidFile

LARGEST = 16 << 20  # bytes of a file; result.json of 1,000 classes has about 30 kB
DEEPEST = 32  # levels of nested lists and tables; the program writes 3
LARGEST_INTEGER = 2**63 - 1
LONGEST_REASON = 200  # characters of a validation error in a message
RETRAIN = "Restore the file, or train that run again in another --out."

# Classes of a data set: enough for ImageNet. A confusion matrix has their square of numbers.
MOST_CLASSES = 2_000
MOST_TEACHERS = 1_000  # of a run

Text = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]


# What is wrong with a value, by pydantic's name of the error.
FAULTS = {
    "string_type": "it is not text",
    "string_too_long": "it has more than {max_length} characters",
    "string_pattern_mismatch": "it is not written as a sweep writes it",
    "int_type": "it is not a whole number",
    "int_from_float": "it is not a whole number",
    "int_parsing": "it is not a whole number",
    "float_type": "it is not a number",
    "finite_number": "it is not finite",
    "bool_type": "it is neither true nor false",
    "list_type": "it is not a list",
    "too_long": "it has {actual_length} items; at most {max_length} are read",
    "dict_type": "it is not a table",
    "model_type": "it is not a table",
    "tuple_type": "it is not a list",
    "none_required": "it is not null",
    "literal_error": "it is not {expected}",
    "greater_than": "it is not above {gt}",
    "greater_than_equal": "it is below {ge}",
    "less_than": "it is not below {lt}",
    "less_than_equal": "it is above {le}",
    "extra_forbidden": "it is unknown",
}
OPEN = ConfigDict(strict=True, extra="allow")  # no conversions; unknown keys are accepted


class Invalid(ValueError):
    """The text is not JSON, or the JSON does not match the file's schema.

    `syntax`: the syntax error with its column if the text is not JSON, otherwise empty.
    """

    def __init__(self, reason: str, syntax: str = "") -> None:
        super().__init__(reason)
        self.syntax = syntax


def checked_measures(metrics: dict[str, float]) -> dict[str, float]:
    """Return `metrics`; raise ValueError if an accuracy or calibration error is not in 0..1."""
    for name, value in metrics.items():
        measure = name.partition("/")[0]
        is_unknown = measure == "ece" and math.isnan(value)  # the logits are NaN
        if measure in ("top1", "ece") and not (0 <= value <= 1 or is_unknown):
            raise ValueError(f"{name[:40]} = {value} is not between 0 and 1")
    return metrics


class DataResult(BaseModel):
    """The table `data` in result.json."""

    model_config = OPEN

    source: Text
    fingerprint: Text
    train_images: Count
    val_images: Count
    test_images: Count | None = None  # None if an earlier version wrote the result


class TeacherResult(BaseModel):
    """The table `teacher` in result.json; `top1` is None if no teacher was used."""

    model_config = OPEN

    runs: Annotated[list[Text], Field(max_length=MOST_TEACHERS)]
    fingerprint: Text
    top1: Share | None
    top1_images: Count | None = None  # images that `top1` was measured on
    # Those whose weights another program trained.
    imported: Annotated[list[Text], Field(max_length=MOST_TEACHERS)] = []


class ImportedTable(BaseModel):
    """The table `imported` in result.json of a teacher whose weights another program trained."""

    model_config = OPEN

    file: Text
    sha256: Text
    mean: list[float] | None
    std: list[float] | None


class FinishedEarlyResult(BaseModel):
    """The table `finished_early` in result.json of a run that was cut off and then finished."""

    model_config = OPEN

    epochs: Count
    planned_epochs: Count
    steps: Count
    planned_steps: Count


class Result(BaseModel):
    """The content of result.json."""

    model_config = OPEN

    role: Literal["teacher", "student"]
    recipe: Text
    recipe_fingerprint: Text
    network: Text
    parameters: Count
    class_names: Annotated[list[Text], Field(max_length=MOST_CLASSES)]
    data: DataResult
    teacher: TeacherResult
    epoch: Count
    epochs: Count
    metrics: dict[str, float]
    elapsed_s: Seconds  # of training
    total_s: Seconds | None = None  # of training, preparation and test
    device: Text
    precision: Text
    processes: Count
    weights: Text
    evaluation: Text
    epoch_weights: dict[str, Text] = {}  # sha256 of saved weights by epoch; not in old results
    finished_at: Text
    imported: ImportedTable | None = None
    finished_early: FinishedEarlyResult | None = None

    @field_validator("metrics")
    @classmethod
    def _shares_are_shares(cls, metrics: dict[str, float]) -> dict[str, float]:
        return checked_measures(metrics)

    @field_validator("finished_at")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        try:
            datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            raise ValueError("it is not a time in ISO 8601") from None
        return text

    @model_validator(mode="before")
    @classmethod
    def _names_have_their_fingerprint(cls, result: Any) -> Any:
        """Compare class_names with their fingerprint.

        An earlier version wrote none, but no version wrote the sha256 of evaluation.npz without
        it: a file with only one of them was changed. Called before the keys are validated, since
        other keys may be missing.
        """
        names, data = result.get("class_names"), result.get("data")
        recorded = data.get("class_names_fingerprint") if isinstance(data, dict) else None
        if isinstance(data, dict) and names and recorded is None and "evaluation" in result:
            raise ValueError("its class_names have no class_names_fingerprint")
        is_known = isinstance(names, list) and recorded is not None
        if is_known and fingerprint_of_names(names) != recorded:
            raise ValueError("its class_names do not have its class_names_fingerprint")
        return result


class Environment(BaseModel):
    """The content of environment.json."""

    model_config = OPEN

    command: list[Text]
    packages: dict[str, Text | None]
    recipe_origins: dict[str, Text]
    source: Text
    sources: list[Text]  # the hashes of all versions of the source that the run was trained with


class BestEpochProgress(BaseModel):
    """The table `best` in progress.json; `epoch` is part of a file name."""

    model_config = ConfigDict(strict=True, extra="forbid")

    epoch: Count
    metrics: dict[str, float]
    weights: Text

    @field_validator("metrics")
    @classmethod
    def _are_of_held_out_images(cls, metrics: dict[str, float]) -> dict[str, float]:
        for name in metrics:
            measure, _, split = name.partition("/")
            if measure not in MEASURES or split not in VALIDATED:
                raise ValueError(f"{name[:40]!a} is not a measure on held-out images")
        return checked_measures(metrics)


class Progress(BaseModel):
    """The content of a checkpoint's progress.json."""

    model_config = OPEN

    step: Count
    epoch: Count
    total_steps: Count
    compiled: bool
    elapsed_s: Seconds
    preparation_s: Seconds = 0.0
    retries: Count
    lr_factor: Annotated[float, Field(ge=0, le=1)]
    best: BestEpochProgress


TEST_CURVE = TypeAdapter(dict[str, dict[str, float]], config=ConfigDict(strict=True))


class JsonObject(dict[str, Any]):
    """A JSON object that raises UserError, with its file's path, for a missing key."""

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


def fingerprint_of_names(class_names: Sequence[str]) -> str:
    """Return the hex sha256 of a list of class names, encoded as JSON."""
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()


def result(path: Path) -> JsonObject:
    """Read result.json. Raises UserError if it is missing, unreadable or invalid."""
    return JsonObject(_read_checked(path, Result, RETRAIN), path)


def environment(path: Path) -> dict[str, Any]:
    """Read environment.json. Raises UserError if it is missing, unreadable or invalid."""
    return _read_checked(path, Environment, "Delete it: the report works without it.")


def test_curve(path: Path) -> dict[str, dict[str, float]]:
    """Read test_curve.json: measures by the sha256 of the weights.

    Raises UserError if it is missing, unreadable or invalid.
    """
    advice = "Delete it: its measures are computed again."
    content = read(path, advice)
    try:
        curve = TEST_CURVE.validate_python(content)
    except ValidationError as fault:
        raise damaged(path, _first_error(fault), advice) from None
    for name, value in (pair for measures in curve.values() for pair in measures.items()):
        largest = 1e6 if name.startswith("nll") else 1
        if not 0 <= value <= largest:
            raise damaged(path, f"{name[:40]} = {value} is not in 0..{largest:g}", advice)
    return curve


def progress(path: Path) -> dict[str, Any]:
    """Read a checkpoint's progress.json. Raises UserError if it is unreadable or invalid."""
    return _read_checked(path, Progress, "Choose another --out.")


def read(path: Path, advice: str = RETRAIN) -> Any:
    """Read a JSON file. Raises UserError, ending with `advice`, if it is unreadable or not JSON."""
    try:
        return parsed(content_of(path))
    except Invalid as fault:
        raise damaged(path, str(fault), advice) from None
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror or fault}.\n{advice}") from fault


def damaged(path: Path, reason: str, advice: str = RETRAIN) -> UserError:
    """Return the error for a damaged file; its message ends with `advice`."""
    return UserError(f"{path} is damaged: {reason}.\n{advice}")


def content_of(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file.

    Raises OSError if it cannot be read, Invalid if it is a pipe or a device or has more than
    `largest` bytes.
    """
    try:
        return regular_file.content_of(path, largest)
    except InvalidFile as fault:
        raise Invalid(str(fault)) from None


def parsed(text: bytes | str) -> Any:
    """Parse JSON text.

    Raises Invalid if it is not JSON, is nested too deeply, or has an integer of more than 64 bits
    or a lone surrogate. The surrogates by which Python represents file names that are not UTF-8 are
    allowed.
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
    """Whether lists and tables are nested at most DEEPEST levels deep.

    There is no recursion: the value may be nested too deeply for it.
    """
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return True
    return False


def check(model: type[BaseModel], value: Any) -> None:
    """Raise Invalid unless `value` is a table whose keys have the types of `model`.

    Missing keys and unknown keys are allowed.
    """
    if not isinstance(value, dict):
        raise Invalid(f"it contains {_type_name(value)} instead of a table")
    try:
        model.model_validate(value)
    except ValidationError as fault:
        if reason := _first_error(fault):
            raise Invalid(reason) from None


def _type_name(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_checked(path: Path, model: type[BaseModel], advice: str) -> dict[str, Any]:
    value = read(path, advice)
    try:
        check(model, value)
    except Invalid as fault:
        raise damaged(path, str(fault), advice) from None
    checked: dict[str, Any] = value
    return checked


def _first_error(fault: ValidationError) -> str:
    """Return the first validation error as text; empty if there is none.

    Missing keys are ignored, and so are names that are not UTF-8, which pydantic rejects.
    """
    for error in fault.errors(include_url=False, include_input=False):
        if error["type"] not in ("missing", "string_unicode"):
            key = ".".join(map(str, error["loc"]))[:60]
            context = error.get("ctx", {})
            known = FAULTS.get(error["type"])
            message = error["msg"].removeprefix("Value error, ")
            message = message if known is None else known.format(**context)
            return f"{key!r}: {message}"[:LONGEST_REASON] if key else message[:LONGEST_REASON]
    return ""
