"""The journal: writing, reading, resuming and damaged lines."""

import json
import math
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.events import End, Epoch, Estimate, Event, Retry, Start, Step
from distill.runs import journal
from distill.runs.journal import Journal


def start(first_step: int = 0) -> Start:
    return Start(
        run="runs/a",
        role="student",
        recipe="kd",
        network="ResNet",
        parameters=100,
        data="synthetic",
        train_images=40,
        val_images=10,
        n_classes=10,
        processes=1,
        device="cpu",
        precision="fp32",
        batch_size=4,
        epochs=3,
        steps_per_epoch=10,
        first_step=first_step,
        first_epoch=first_step // 10,
        notes=("short",),
    )


def step(k: int) -> Step:
    return Step(k, (k - 1) // 10, {"loss/total": 1 / k, "lr": 0.1})


def epoch(n: int) -> Epoch:
    return Epoch(n, 10 * n, {"top1/val": 0.1 * n}, True, 2.0 * n, 6.0 - 2 * n)


def end() -> End:
    return End(3, {"top1/test": 0.5}, 100, 6.0, "runs/a/student.safetensors")


def write(path: Path, *events: Event) -> None:
    record = Journal(path)
    for event in events:
        record(event)


def test_every_event_is_one_json_line(tmp_path: Path) -> None:
    path, written = tmp_path / "new" / "journal.jsonl", [start(), step(10), epoch(1), end()]
    write(path, *written)
    assert journal.events(path) == written
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "step", "epoch", "end"]
    assert lines == journal.read(path)
    assert lines[1]["metrics"] == {"loss/total": 0.1, "lr": 0.1}


def test_line_is_in_file_when_call_returns(tmp_path: Path) -> None:
    record, path = Journal(tmp_path / "journal.jsonl"), tmp_path / "journal.jsonl"
    for n, event in enumerate([start(), step(1), step(2)], start=1):
        record(event)
        assert path.read_text().count("\n") == n


def test_at_is_the_utc_time_of_writing(tmp_path: Path) -> None:
    write(tmp_path / "journal.jsonl", start())
    (line,) = journal.read(tmp_path / "journal.jsonl")
    at = datetime.fromisoformat(line["at"])
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(at.tzinfo) - at) < timedelta(seconds=60)


def test_nan_is_null_in_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.jsonl"
    write(
        path, Step(1, 0, {"loss/total": math.inf, "lr": 0.1}), Epoch(1, 1, {}, False, 1, math.nan)
    )
    assert journal.read(path)[0]["metrics"] == {"loss/total": None, "lr": 0.1}
    first, second = journal.events(path)
    assert math.isnan(first.metrics["loss/total"]) and first.metrics["lr"] == 0.1
    assert isinstance(second, Epoch) and math.isnan(second.remaining_s)


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, start(), step(1), step(2))
    whole = path.read_text()
    for cut in range(2, 40):
        path.write_text(whole[:-cut])
        assert journal.events(path) == [start(), step(1)]


def test_a_damaged_line_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "step"}\n{"event": oops\n{"event": "end"}\n')
    with pytest.raises(
        UserError, match=r"journal\.jsonl, line 2 is not JSON.*\n.*oops.*Delete that"
    ):
        journal.read(path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[]", "is not an event: its `event` is none of start, step"),
        ("null", "is not an event"),
        ('{"event": []}', "is not an event"),
        ('{"event": "party"}', "is not an event"),
        ('{"event": "step", "step": "7"}', "is not an event: 'step': it is not a whole number"),
        ('{"event": "step", "metrics": [1]}', "is not an event: 'metrics'"),
        ('{"event": "step", "metrics": {"lr": "0"}}', "is not an event: 'metrics.lr'"),
        (
            '{"event": "epoch", "metrics": {"top1/val": 7.5}}',
            "is not an event: top1/val = 7.5 is not between 0 and 1",
        ),
        ('{"event": "start", "notes": 5}', "is not an event: 'notes'"),
        ('{"event": "epoch", "elapsed_s": 1e300}', "is not an event: 'elapsed_s'"),
        ('{"event": ' + "[" * 100_000, "is not an event: it is nested"),
        ('{"event": "step", "step": ' + "9" * 5000 + "}", "is not an event: it has an integer"),
    ],
)
def test_line_that_is_no_event_is_named(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, start())
    with path.open("a") as file:
        file.write(line + "\n")
    for read in (journal.read, journal.events):
        with pytest.raises(UserError, match=f"line 2 {fault}"):
            read(path)


def test_event_without_a_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "step"}\n')
    with pytest.raises(
        UserError, match="journal.jsonl is damaged: the event `step` lacks step, epoch"
    ):
        journal.events(path)


def test_a_link_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine\n")
    (tmp_path / "journal.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        journal.Journal(tmp_path / "journal.jsonl")(step(1))
    assert (tmp_path / "elsewhere").read_text() == "mine\n"


def test_no_journal_has_no_lines(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "journal.jsonl") == []


def test_resumed_run_drops_lines_past_its_step(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, start(), step(5), step(10), epoch(1), step(15), step(20), epoch(2), end())
    write(path, start(first_step=15))
    written = [start(), step(5), step(10), epoch(1), step(15), start(first_step=15)]
    assert journal.events(path) == written


def test_interrupted_and_resumed_run_leaves_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, start(), *(step(k) for k in range(1, 18)))
    with path.open("a") as file:
        file.write('{"event": "step", "at": "2026-')  # killed while it wrote
    write(path, start(first_step=10), *(step(k) for k in range(11, 31)), end())
    steps = [e.step for e in journal.events(path) if isinstance(e, Step)]
    assert steps == list(range(1, 31))


def test_unsaved_epoch_is_written_again(tmp_path: Path) -> None:
    """Its last step and its end have the same number of steps; the checkpoint may lie between."""
    path = tmp_path / "journal.jsonl"
    write(path, start(), step(10), epoch(1), step(11))
    again = replace(start(first_step=10), first_epoch=0)
    write(path, again)
    assert journal.events(path) == [start(), step(10), again]


def test_what_is_gone_back_from_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    back = Retry(18, 12, 1, 0.5, "the loss is not finite")
    write(path, start(), step(10), epoch(1), step(12), step(13), back, step(13))
    assert journal.events(path) == [start(), step(10), epoch(1), step(12), back, step(13)]


def test_unsaved_retry_is_written_once(tmp_path: Path) -> None:
    """It goes back to step 10; the process is killed before that is in a checkpoint, or after."""
    path, back = tmp_path / "journal.jsonl", Retry(12, 10, 1, 0.5, "not finite in step 12")
    before = [start(), step(10), epoch(1), back]
    write(path, *before, replace(start(10), retries=1))
    assert journal.events(path) == [*before, replace(start(10), retries=1)]
    path.unlink()
    write(path, *before, start(10), back)
    assert journal.events(path) == [start(), step(10), epoch(1), start(10), back]


def test_equal_retries_are_counted_apart(tmp_path: Path) -> None:
    """The journal has one retry twice; the checkpoint counts the first of them."""
    path, back = tmp_path / "journal.jsonl", Retry(12, 10, 1, 0.5, "not finite in step 12")
    lines = [journal.line(event) for event in (start(), step(10), epoch(1), back)]
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    write(path, replace(start(10), retries=1))
    assert [type(event) for event in journal.events(path)] == [Start, Step, Epoch, Retry, Start]


def test_rewinding_many_retries_takes_linear_time(tmp_path: Path) -> None:
    path, back = tmp_path / "journal.jsonl", Retry(12, 10, 1, 0.5, "not finite in step 12")
    rows = [json.loads(journal.line(back)) | {"i": i} for i in range(20_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    begun = time.process_time()
    journal.rewind(path, 10, 1, retries=0)
    assert time.process_time() - begun < 10
    assert path.read_text() == ""


def test_unknown_keys_do_not_place_a_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    row = json.loads(journal.line(start())) | {"step": "x", "epoch": [9]}
    path.write_text(json.dumps(row) + "\n")
    journal.rewind(path, 10, 1)
    assert journal.read(path) == [row]


def test_lines_before_resumed_step_are_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, start(), step(5), step(15))
    before = journal.read(path)
    write(path, start(first_step=10))
    assert journal.read(path)[:2] == before[:2]


def test_a_run_that_begins_anew_keeps_no_step(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, start(), step(5))
    write(path, start())
    assert not any(isinstance(event, Step) for event in journal.events(path))


def test_rewinding_leaves_no_other_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, start(), step(5), start(first_step=2))
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]


def test_estimate_is_dropped_with_its_step(tmp_path: Path) -> None:
    path, estimate = tmp_path / "journal.jsonl", Estimate(8, 0, 5, 90.0, 76.5, 103.5)
    write(path, start(), step(7), estimate, step(10))
    assert journal.events(path)[2] == estimate
    journal.rewind(path, 8, 0)
    assert journal.events(path) == [start(), step(7), estimate]
    journal.rewind(path, 7, 0)
    assert journal.events(path) == [start(), step(7)]


@pytest.mark.parametrize("text", ["", "half a line", '{"event": "sta'])
def test_a_resumed_journal_is_a_new_file(tmp_path: Path, text: str) -> None:
    """Neither half a line nor another name of the file (a hard link) is appended to."""
    other, path = tmp_path / "other", tmp_path / "journal.jsonl"
    other.write_text(text)
    path.hardlink_to(other)
    write(path, start(), step(1))
    assert other.read_text() == text
    assert journal.events(path) == [start(), step(1)]


def test_long_journal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "end"}\n' * 5)
    monkeypatch.setattr(journal, "MOST_LINES", 5, raising=False)
    assert len(journal.read(path)) == 5
    monkeypatch.setattr(journal, "MOST_LINES", 4, raising=False)
    with pytest.raises(UserError, match="journal.jsonl is damaged: it has more than 4 lines"):
        journal.read(path)


def test_event_of_many_metrics_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for n in (journal.MOST_METRICS, journal.MOST_METRICS + 1):
        path.write_text(journal.line(Step(1, 0, {f"loss/t{i}": 0.0 for i in range(n)})) + "\n")
        if n == journal.MOST_METRICS:
            assert len(journal.read(path)) == 1
    with pytest.raises(UserError, match="line 1 has more than 100 metrics"):
        journal.read(path)


def test_events_of_many_metrics_are_refused(tmp_path: Path) -> None:
    """Each of them has few; a report of 1,200 names would take minutes."""
    path = tmp_path / "journal.jsonl"
    lines = [journal.line(Step(n, 0, {f"loss/t{n}": 0.0})) for n in range(1, 102)]
    path.write_text("\n".join(lines[:100]) + "\n")
    assert len(journal.read(path)) == 100
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="line 101 has more than 100 metrics, with those before"):
        journal.read(path)


def test_long_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "end"}\n{"event": "end", "a": "bcd"}\n')
    monkeypatch.setattr(journal, "LONGEST_LINE", 20, raising=False)
    with pytest.raises(UserError, match="damaged: its line 2 has more than 20 bytes"):
        journal.read(path)
