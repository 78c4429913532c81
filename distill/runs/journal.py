"""Write and read journal.jsonl: one event per line.

    {"event": "step", "at": "2026-01-31T12:00:00.000+00:00", "step": 1053, "epoch": 3, …}

`event` is the name of the event's class in lower case, `at` the UTC time of writing; the other keys
are the event's fields (`distill/events.py`). A number that is not finite is written as `null`, so
that every line is valid JSON.
"""

import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import MISSING, asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, create_model

from distill.errors import UserError
from distill.events import End, Epoch, Estimate, Event, Retry, Start, Step
from distill.files import run_json_schemas
from distill.files.regular_file import InvalidFile, open_regular
from distill.files.run_json_schemas import Invalid
from distill.runs import lock
from distill.runs.run_folder import write_text


def _in_range(seconds: float) -> float:
    if abs(seconds) > 1e12:
        raise ValueError("it is not a time in seconds")
    return seconds


SECONDS = Annotated[float, AfterValidator(_in_range)]

KINDS: dict[str, type[Event]] = {  # by their names in the journal
    "start": Start,
    "step": Step,
    "estimate": Estimate,
    "epoch": Epoch,
    "retry": Retry,
    "end": End,
}
LARGEST = 1 << 30  # most bytes of a journal
MOST_LINES = 1_000_000
# Most names of metrics in a journal; a recipe has one for each loss term, and about ten.
MOST_METRICS = 100
LONGEST_LINE = 1 << 22  # most bytes of a line; the line of a step has about 500


def _schema(kind: type[Event]) -> type[BaseModel]:
    """Return a pydantic model that validates the fields of an event.

    Fields in seconds are bounded, so that they can be formatted as durations.
    """
    types = get_type_hints(kind)
    fields = {name: (SECONDS if name.endswith("_s") else types[name], ...) for name in types}
    return create_model(kind.__name__, __config__=run_json_schemas.OPEN, **fields)  # type: ignore[call-overload, no-any-return]


SCHEMAS = {name: _schema(kind) for name, kind in KINDS.items()}


class Journal:
    """Appends events to a journal file; after a resume, the journal has no step twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        """Append an event as one line.

        A `Start` or `Retry` first drops the lines after the step from which training continues.
        """
        if isinstance(event, Start):
            rewind(self.path, event.first_step, event.first_epoch, event.retries)
        if isinstance(event, Retry):
            rewind(self.path, event.first_step, event.first_epoch)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened and closed for each line: readers see complete lines, and no line is lost if the
        # process is killed.
        with open(self.path, "a", opener=lock.open_without_following_links) as file:
            file.write(line(event) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that includes the event is written


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal as dicts; an empty list if the file does not exist yet.

    A last line that is incomplete because the process was killed is left out. Raises UserError if
    the file cannot be read, if another line is not JSON or not an event, or if the events have more
    than MOST_METRICS names of metrics: a report draws a curve for each name.
    """
    texts = _lines(path) if path.exists() else iter(())
    rows, names = [], set[str]()
    for number, text in enumerate(texts, start=1):
        try:
            row = _row(text)
            names.update(row.get("metrics") or ())
            if len(names) > MOST_METRICS:
                raise Invalid(f"has more than {MOST_METRICS} metrics, with those before it")
            rows.append(row)
        except Invalid as fault:
            if fault.syntax and next(texts, None) is None:
                break
            raise UserError(
                f"{path}, line {number} {fault}.\nFound: {text[:80]!r}. Delete that line."
            ) from fault
    return rows


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file one by one, since parsed lines take many times their size.

    Raises UserError if the file cannot be read, is not a regular file, or exceeds LARGEST,
    MOST_LINES or LONGEST_LINE.
    """
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
        raise run_json_schemas.damaged(path, str(fault), "Move it away.") from None
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror or fault}.") from fault


def _row(text: str) -> dict[str, Any]:
    """Parse one line of a journal. Raises Invalid if it is not JSON or not an event."""
    try:
        row = run_json_schemas.parsed(text)
    except Invalid as fault:
        reason = f"JSON: {fault.syntax}" if fault.syntax else f"an event: {fault}"
        raise Invalid(f"is not {reason}", fault.syntax) from None
    name = row.get("event") if isinstance(row, dict) else None
    if not isinstance(name, str) or name not in KINDS:
        raise Invalid(f"is not an event: its `event` is none of {', '.join(KINDS)}")
    if len(row.get("metrics") or ()) > MOST_METRICS:
        raise Invalid(f"has more than {MOST_METRICS} metrics")
    try:
        run_json_schemas.check(
            SCHEMAS[name], {key: field_from_json(key, value) for key, value in row.items()}
        )
        run_json_schemas.checked_measures(field_from_json("metrics", row.get("metrics") or {}))
    except ValueError as fault:
        raise Invalid(f"is not an event: {fault}") from None
    checked: dict[str, Any] = row
    return checked


def events(path: Path) -> list[Event]:
    """Return the events of a journal; a number that is `null` becomes nan.

    Raises UserError if the file cannot be read, if a line other than an incomplete last one is not
    an event, or if an event lacks a field.
    """
    try:
        return [event(row) for row in read(path)]
    except TypeError as fault:
        raise run_json_schemas.damaged(path, str(fault), "Move it away.") from None


def line(event: Event) -> str:
    """Return an event as a line of JSON, with the current time, without a newline."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    row = {"event": type(event).__name__.lower(), "at": at, **asdict(event)}
    return json.dumps(without_nan(row), allow_nan=False)


def event(row: dict[str, Any]) -> Event:
    """Return the event of one parsed line. Raises TypeError if a field is missing."""
    kind = KINDS[row["event"]]
    fields = kind.__dataclass_fields__
    required = [
        name
        for name, field in fields.items()
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if missing := [name for name in required if name not in row]:
        raise TypeError(f"the event `{row['event']}` lacks {', '.join(missing)}")
    return kind(**{key: field_from_json(key, value) for key, value in row.items() if key in fields})


def field_from_json(key: str, value: Any) -> Any:
    """Return the value of an event's field `key` from its JSON value.

    Lists become tuples, and `null` becomes nan in metrics and seconds.
    """
    if key == "metrics" and isinstance(value, dict):
        return {name: math.nan if number is None else number for name, number in value.items()}
    if key == "notes" and isinstance(value, list):
        return tuple(value)
    return math.nan if value is None and key.endswith("_s") else value


def rewind(path: Path, first_step: int, first_epoch: int, retries: int | None = None) -> None:
    """Drop the lines written after `first_step` steps or `first_epoch` epochs; rewrite atomically.

    `retries`: the number of retries that the checkpoint counts, or None to preserve all. A later
    retry is dropped too, although its line has the step of an earlier checkpoint: its process was
    killed before it saved a checkpoint of its own.
    """
    rows = read(path)
    if path.exists():  # rewritten in any case, to drop a partial line or a hard link
        before = [row for row in rows if is_before(row, first_step, first_epoch)]
        if retries is not None:
            before = _without_later_retries(before, retries)
        write_text(path, "".join(json.dumps(row) + "\n" for row in before))


def _without_later_retries(rows: list[dict[str, Any]], retries: int) -> list[dict[str, Any]]:
    """Return the lines without all retry lines after the first `retries`."""
    number = itertools.count()
    return [row for row in rows if row["event"] != "retry" or next(number) < retries]


def is_before(row: dict[str, Any], step: int, epoch: int) -> bool:
    """Whether a line was written when at most `step` steps and `epoch` epochs were done.

    Both are compared, since the last step of an epoch and the end of the epoch have the same number
    of steps. An `End` is after every step.
    """
    prefix = "first_" if row["event"] in ("start", "retry") else ""
    steps, epochs = row.get(f"{prefix}step", 0), row.get(f"{prefix}epoch", 0)
    return bool(row["event"] != "end" and steps <= step and epochs <= epoch)


def without_nan(value: Any) -> Any:
    """Return `value` with None for every float that is not finite, also inside lists and dicts."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
