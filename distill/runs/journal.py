"""Write and read journal.jsonl: one event per line.

    {"event": "step", "at": "2026-01-31T12:00:00.000+00:00", "step": 1053, "epoch": 3, …}

`event` is the event's name in lower case, `at` the UTC time of writing, the rest are its fields
(`distill/events.py`). A number that is not finite is `null`, so that every line is JSON.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, create_model

from distill.errors import UserError
from distill.events import End, Epoch, Estimate, Event, Retry, Start, Step
from distill.files import run_json
from distill.files.regular_file import InvalidFile, open_regular
from distill.files.run_json import Invalid
from distill.runs import lock
from distill.runs.run_folder import write_text


def _in_range(seconds: float) -> float:
    if abs(seconds) > 1e12:
        raise ValueError("it is not a time in seconds")
    return seconds


SECONDS = Annotated[float, AfterValidator(_in_range)]

KINDS: dict[str, type[Event]] = {
    "start": Start,
    "step": Step,
    "estimate": Estimate,
    "epoch": Epoch,
    "retry": Retry,
    "end": End,
}
LARGEST = 1 << 30  # bytes of a journal
MOST_LINES = 1_000_000
LONGEST_LINE = 1 << 22  # bytes; a step has about 500


def _schema(kind: type[Event]) -> type[BaseModel]:
    """Return a model of the types of an event's fields; seconds are bounded so that they can be
    formatted.
    """
    types = get_type_hints(kind)
    fields = {name: (SECONDS if name.endswith("_s") else types[name], ...) for name in types}
    return create_model(kind.__name__, __config__=run_json.OPEN, **fields)  # type: ignore[call-overload, no-any-return]


SCHEMAS = {name: _schema(kind) for name, kind in KINDS.items()}


class Journal:
    """Append events to a journal; after a resume, no step is in it twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        """Append one line. For a `Start` or `Retry`, first drop the lines after the step from which
        it continues.
        """
        if isinstance(event, Start):
            rewind(self.path, event.first_step, event.first_epoch, event.retries)
        if isinstance(event, Retry):
            rewind(self.path, event.first_step, event.first_epoch)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened for each line: readers see complete lines, and a kill loses none.
        with open(self.path, "a", opener=lock.open_without_following_links) as file:
            file.write(line(event) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that includes the event is written


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal; an empty list if there is none yet.

    A last line that was cut short by a kill is left out; any other that is not JSON raises
    UserError.
    """
    texts = _lines(path) if path.exists() else iter(())
    rows = []
    for number, text in enumerate(texts, start=1):
        try:
            rows.append(_row(text))
        except Invalid as fault:
            if fault.syntax and next(texts, None) is None:
                break
            raise UserError(
                f"{path}, line {number} {fault}.\nFound: {text[:80]!r}. Delete that line."
            ) from fault
    return rows


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines one by one: parsed, short ones take many times their size."""
    try:
        with open_regular(path, LARGEST) as file:
            number = 0
            while text := file.readline(LONGEST_LINE + 1):
                number += 1
                if number > MOST_LINES:
                    raise InvalidFile(f"it has more than {MOST_LINES:,} lines")
                if len(text) > LONGEST_LINE:
                    raise InvalidFile(f"its line {number} has more than {LONGEST_LINE:,} bytes")
                yield text.decode(errors="replace").rstrip("\r\n")
    except InvalidFile as fault:
        raise run_json.damaged(path, str(fault), "Move it away.") from None
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror or fault}.") from fault


def _row(text: str) -> dict[str, Any]:
    """Parse one line. Raises Invalid if it is not JSON or not an event."""
    try:
        row = run_json.parsed(text)
    except Invalid as fault:
        reason = f"JSON: {fault.syntax}" if fault.syntax else f"an event: {fault}"
        raise Invalid(f"is not {reason}", fault.syntax) from None
    name = row.get("event") if isinstance(row, dict) else None
    if not isinstance(name, str) or name not in KINDS:
        raise Invalid(f"is not an event: its `event` is none of {', '.join(KINDS)}")
    try:
        run_json.check(SCHEMAS[name], {key: field_value(key, value) for key, value in row.items()})
    except Invalid as fault:
        raise Invalid(f"is not an event: {fault}") from None
    checked: dict[str, Any] = row
    return checked


def events(path: Path) -> list[Event]:
    """Return the events of a journal, with nan for `null` numbers.

    Raises the UserErrors of `read`, and one if an event lacks a field.
    """
    try:
        return [event(row) for row in read(path)]
    except TypeError as fault:
        raise run_json.damaged(path, f"an event lacks a field ({fault})", "Move it away.") from None


def line(event: Event) -> str:
    """Return one event as a line of JSON, without a newline."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    row = {"event": type(event).__name__.lower(), "at": at, **asdict(event)}
    return json.dumps(without_nan(row), allow_nan=False)


def event(row: dict[str, Any]) -> Event:
    """Return the event of one line; the inverse of `line`."""
    kind = KINDS[row["event"]]
    fields = kind.__dataclass_fields__
    return kind(**{key: field_value(key, value) for key, value in row.items() if key in fields})


def field_value(key: str, value: Any) -> Any:
    """Convert a field's JSON value to the event's: lists to tuples, `null` numbers to nan."""
    if key == "metrics" and isinstance(value, dict):
        return {name: math.nan if number is None else number for name, number in value.items()}
    if key == "notes" and isinstance(value, list):
        return tuple(value)
    return math.nan if value is None and key.endswith("_s") else value


def rewind(path: Path, first_step: int, first_epoch: int, retries: int | None = None) -> None:
    """Drop the lines after `first_step` steps and `first_epoch` epochs, by an atomic rewrite.

    A retry's line has the step of its checkpoint. Only the first `retries` of them stay: a later
    one was written by a process that was killed before its checkpoint was written.
    """
    rows = read(path)
    if path.exists():  # rewritten in any case, to drop a partial line or a hard link
        before = [row for row in rows if is_before(row, first_step, first_epoch)]
        unsaved = [row for row in before if row["event"] == "retry"][retries:]
        if retries is not None:
            before = [row for row in before if row not in unsaved]
        write_text(path, "".join(json.dumps(row) + "\n" for row in before))


def is_before(row: dict[str, Any], step: int, epoch: int) -> bool:
    """Whether a line was written when at most `step` steps and `epoch` epochs were done.

    The end of an epoch and its last step have the same number of steps; an `End` is after all.
    """
    steps, epochs = (row.get(key, row.get(f"first_{key}", 0)) for key in ("step", "epoch"))
    return bool(row["event"] != "end" and steps <= step and epochs <= epoch)


def without_nan(value: Any) -> Any:
    """Return the same value with None for every float that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
