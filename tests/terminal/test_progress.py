"""The progress display of a training in a terminal and in a log."""

import math
import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from distill.events import TRAINING_STEPS, End, Epoch, Estimate, Start, Step
from distill.runs.teacher_student_summary import ClosingRow
from distill.terminal import progress
from distill.terminal.progress import (
    ProgressDisplay,
    closing_table,
    losses_text,
)

START = Start(
    run="runs/x",
    role="student",
    recipe="kd_cutmix+quickstart",
    network="ResNet [4, 4, 3] 64-128-256",
    parameters=4_697_162,
    data="cifar10",
    train_images=45_000,
    val_images=5_000,
    n_classes=10,
    processes=2,
    device="cuda",
    precision="bf16",
    batch_size=100,
    epochs=30,
    steps_per_epoch=40,
    first_step=0,
    teacher="runs/teacher[1]",
    teacher_top1=0.95314,
    teacher_images=5_000,
    notes=("the teacher knows [5] classes only",),
)
LOSSES = {"loss/hard": 0.512, "loss/kd": 0.804, "loss/total": 1.2341}
EPOCH = Epoch(3, 120, LOSSES | {"top1/val": 0.7117, "top1/val_ema": 0.73}, True, 20.0, 151.4)
END = End(28, {"top1/val": 0.951, "top1/test": 0.9482}, 4_697_162, 3723.0, "runs/x/s.safetensors")
ESCAPE = "\x1b"


def console(terminal: bool) -> Console:
    # Colours are stated, so that the surroundings of the test do not decide.
    return Console(
        file=StringIO(),
        force_terminal=terminal,
        force_interactive=terminal,
        color_system="truecolor" if terminal else None,
        width=100,
        _environ={},
    )


def shown(out: Console) -> str:
    assert isinstance(out.file, StringIO)
    return out.file.getvalue()


def logged(*events: Start | Step | Estimate | Epoch | End) -> str:
    out = console(terminal=False)
    with ProgressDisplay(out) as display:
        for event in events:
            display(event)
    return shown(out)


def bars(*events: Start | Step | Epoch) -> str:
    """The moving part as plain text after these events, without a thread that moves it."""
    display = ProgressDisplay(console(terminal=False))
    for event in events:
        display(event)
    out = console(terminal=False)
    out.print(display.bars())
    return shown(out)


def test_head_names_network_data_and_processes() -> None:
    head = logged(START)
    assert "ResNet [4, 4, 3] 64-128-256, 4,697,162 parameters" in head
    assert "runs/teacher[1], top1/val 95.31 %" in head
    assert "cifar10, 10 classes, 45,000 images to train on, 5,000 held out" in head
    assert "cuda, bf16, 2 processes" in head
    assert "30 epochs of 40 steps, batches of 100" in head
    assert "kd_cutmix+quickstart" in head
    assert "note: the teacher knows [5] classes only" in head
    assert "resumed" not in head


def test_head_of_a_teacher_names_no_teacher() -> None:
    head = logged(replace(START, role="teacher", teacher=None, processes=1))
    assert "1 process\n" in head
    assert "nobody" not in head
    assert re.search(r"^teacher +ResNet", head)


def test_head_of_student_alone_and_of_unmeasured_teacher() -> None:
    assert re.search(r"teacher +none, labels only", logged(replace(START, teacher=None)))
    head = logged(replace(START, teacher_images=1_024))
    assert "runs/teacher[1], accuracy 95.31 % on 1,024 of 5,000 held-out images" in head
    assert "runs/teacher[1], top1/val –" in logged(replace(START, teacher_top1=None))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.804, "0.80"), (0.0, "0.00"), (0.0034, "0.0034"), (2e-7, "2e-07"), (float("nan"), "nan")],
)
def test_small_losses_have_significant_digits(value: float, text: str) -> None:
    assert losses_text({"loss/kd": value, "loss/total": 1.5}) == f"loss 1.500 (kd {text})"


def test_resumed_run_shows_its_first_step() -> None:
    assert re.search(r"resumed +at step 1,120", logged(replace(START, first_step=1120)))


def test_without_terminal_epoch_is_one_plain_line() -> None:
    text = logged(START, Step(120, 2, {"images_per_s": 412.3}), EPOCH)
    assert text.splitlines()[-1] == (
        "epoch 3/30   loss 1.234 (hard 0.51, kd 0.80)  top1/val 71.17 %  top1/val_ema 73.00 %"
        "  412 images/s  2:31 of training left  best"
    )
    assert ESCAPE not in text


def test_lines_of_different_epochs_are_aligned() -> None:
    lines = logged(START, EPOCH, replace(EPOCH, epoch=12, is_best=False)).splitlines()[-2:]
    assert lines[0].index("loss") == lines[1].index("loss")
    assert lines[0].endswith("best") and not lines[1].endswith("best")


def test_average_alone_is_shown_if_only_measured() -> None:
    epoch = replace(EPOCH, metrics=LOSSES | {"top1/val_ema": 0.73})
    line = logged(START, epoch).splitlines()[-1]
    assert "(hard 0.51, kd 0.80)  top1/val_ema 73.00 %  " in line
    assert "top1/val " not in line + bars(START, epoch)
    assert "top1/val_ema 73.00 %  best epoch 3" in bars(START, epoch)


def test_what_is_not_known_is_a_dash() -> None:
    line = logged(START, Epoch(1, 40, {}, False, 1.0, math.nan)).splitlines()[-1]
    assert line == "epoch 1/30   loss –  top1/val –  – images/s  – of training left"


def test_steps_write_no_line_to_a_log() -> None:
    assert logged(START, Step(1, 0, LOSSES), Step(2, 0, LOSSES)) == logged(START)


def test_end_names_best_epoch_accuracy_and_file() -> None:
    *_, best, weights = logged(START, END).splitlines()
    assert best == (
        "final weights: epoch 28  top1/val 95.10 %  top1/test 94.82 %  trained for 1:02:03"
    )
    assert weights.split() == ["weights", "runs/x/s.safetensors"]


def test_end_names_accuracy_of_averaged_weights() -> None:
    metrics = END.metrics | {"top1/val_ema": 0.9533}
    *_, best, _ = logged(START, replace(END, metrics=metrics)).splitlines()
    assert "epoch 28  top1/val_ema 95.33 %  top1/test 94.82 %" in best
    assert "95.10 %" not in best, "the weights of the last step are not saved"


def test_bars_match_the_progress() -> None:
    text = bars(START, Step(110, 2, LOSSES | {"lr": 0.0812, "images_per_s": 400.0}))
    assert re.search(r"epoch +3/30 ", text)
    assert re.search(r"step +30/40 ", text)
    assert "400 images/s" in text
    # 1,090 of 1,200 steps are to come, 100 images each: 272.5 s at 400 images/s
    assert "4:32 of training left" in text
    assert "loss 1.234 (hard 0.51, kd 0.80)  lr 0.0812  top1/val –" in text


def test_step_bar_shows_share_of_epoch() -> None:
    def cells(step: int) -> int:
        # Without colour only the part that is done is drawn.
        (line,) = [x for x in bars(START, Step(step, 0, {})).splitlines() if x.startswith("step")]
        return line.count("━")

    quarter, half = cells(10), cells(20)
    assert quarter > 5
    assert abs(half - 2 * quarter) <= 1


def test_time_left_follows_estimate_of_last_epoch() -> None:
    # 151.4 s for the 1,080 steps after epoch 3; 540 steps later half of it is left.
    assert "1:16 of training left" in bars(START, EPOCH, Step(660, 16, {"images_per_s": 9999.0}))


def test_bars_remember_accuracy_and_best_epoch_between_epochs() -> None:
    text = bars(START, EPOCH, replace(EPOCH, epoch=4, step=160, is_best=False), Step(170, 4, {}))
    assert "top1/val 71.17 %  top1/val_ema 73.00 %  best epoch 3" in text
    assert re.search(r"step +10/40", text)


def test_after_last_epoch_bars_do_not_count_further() -> None:
    text = bars(START, replace(EPOCH, epoch=30, step=1200, remaining_s=0.0))
    assert re.search(r"epoch +30/30", text)
    assert re.search(r"step +40/40", text)
    assert "training done" in text and "left" not in text


def test_resumed_run_starts_its_bars_later() -> None:
    text = bars(replace(START, first_step=410, first_epoch=10))
    assert re.search(r"epoch +11/30", text)
    assert re.search(r"step +10/40", text)


def test_bars_disappear_and_lines_remain() -> None:
    out = console(terminal=True)
    with ProgressDisplay(out) as display:
        for event in (START, Step(110, 2, {"images_per_s": 400.0}), EPOCH):
            display(event)
    text = shown(out)
    assert "━" in text
    assert "epoch 3/30   loss 1.234" in text
    assert text.count(f"{ESCAPE}[?25l") == text.count(f"{ESCAPE}[?25h") == 1  # cursor given back
    assert "images/s" not in next(line for line in text.splitlines() if "epoch 3/30   loss" in line)


def test_narrow_terminal_wraps_between_words() -> None:
    def lines(terminal: bool) -> list[str]:
        out = console(terminal)
        out.width = 60
        ProgressDisplay(out)(EPOCH)
        return [line for line in shown(out).splitlines() if line]

    first, second = lines(terminal=True)
    assert first.startswith("epoch 3/3") and re.match("top1/val", second)
    assert len(lines(terminal=False)) == 1


def test_terminal_is_given_back_when_run_fails() -> None:
    out = console(terminal=True)
    with pytest.raises(RuntimeError, match="boom 7"), ProgressDisplay(out) as display:
        display(START)
        raise RuntimeError("boom 7")
    assert shown(out).count(f"{ESCAPE}[?25h") == 1


def test_without_held_out_images_no_epoch_is_best() -> None:
    start = replace(START, val_images=0)
    epoch = Epoch(1, 40, LOSSES, True, 20.0, 151.4)
    end = End(30, {"top1/test": 0.9}, 4_697_162, 60.0, "runs/x/s.safetensors", 71.0)
    lines = logged(start, Step(40, 0, {"images_per_s": 412.3}), epoch, end).splitlines()
    assert lines[-3:-1] == [
        "epoch 1/30   loss 1.234 (hard 0.51, kd 0.80)  412 images/s  2:31 of training left",
        "final weights: epoch 30  top1/test 90.00 %  trained for 1:00  total 1:11",
    ]
    text = bars(start, epoch, Step(50, 1, {}))
    assert "best" not in text and "top1" not in text


def test_tasks_during_the_training_are_bars_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_AFTER_S", 0.0)
    out = console(terminal=False)
    display = ProgressDisplay(out)
    display.progress("reading the train split", 0, 0)
    display(START)
    printed = shown(out)
    display.progress("measuring top1/val", 2_500, 5_000)
    assert shown(out) == printed, "no line beside those of the epochs"
    drawn = console(terminal=False)
    drawn.print(display.bars())
    assert "measuring top1/val" in shown(drawn) and "2,500/5,000" in shown(drawn)
    assert "reading" not in shown(drawn), "done when the training begins"
    display(replace(EPOCH, epoch=30, step=1200))
    display.progress("measuring the test split", 5_000, 10_000)
    assert shown(out).splitlines()[-1] == "measuring the test split  5,000 of 10,000"


def test_a_task_of_one_item_writes_no_line() -> None:
    out = console(terminal=False)
    display = ProgressDisplay(out)
    display.progress("reading the train split", 0, 0)
    drawn = console(terminal=False)
    drawn.print(display.bars())
    assert shown(drawn).startswith("reading the train split")
    display.progress("reading the train split", 1, 1)
    drawn = console(terminal=False)
    drawn.print(display.bars())
    assert shown(drawn).strip() == "" and shown(out) == ""


def test_log_does_not_report_short_tasks() -> None:
    out = console(terminal=False)
    seconds = iter(range(0, 100, 2))
    display = ProgressDisplay(out, lambda: next(seconds))
    for done in range(5):
        display.progress("measuring the test split", done * 100, 400)
    assert shown(out).splitlines() == [
        f"measuring the test split  {done} of 400" for done in (200, 300, 400)
    ]


def test_log_reports_preparing_once_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_AFTER_S", 0.0)
    out = console(terminal=False)
    with ProgressDisplay(out) as display:
        for done in range(0, 50_001, 100):
            display.progress("decoding images", done, 50_000)
        display.progress("downloading", 77, 0)
    assert shown(out).splitlines() == [
        f"decoding images  {done:,} of 50,000" for done in (12_500, 25_000, 37_500, 50_000)
    ]


def test_preparing_is_a_bar_until_it_is_done() -> None:
    display = ProgressDisplay(console(terminal=True))
    display.progress("decoding images", 500, 1_000)
    display.progress("reading targets", 5, 0)
    out = console(terminal=False)
    out.print(display.bars())
    assert "decoding images" in shown(out) and "500/1,000" in shown(out)
    assert "reading targets" in shown(out)
    display.progress("decoding images", 1_000, 1_000)
    out = console(terminal=False)
    out.print(display.bars())
    assert "decoding images" not in shown(out)


def test_closing_table_sets_three_side_by_side() -> None:
    out = console(terminal=False)
    out.width = 120
    out.print(
        closing_table(
            [
                ClosingRow(
                    "teacher", "WRN-28-10", 36_479_194, 0.9612, 0.96, 7261.0, 7321.0, "val_ema"
                ),
                ClosingRow("teacher", "WRN-28-10", 36_479_194, 0.9512, 0.95, 7261.0, None, "val"),
                ClosingRow("alone", "ResNet [4, 4, 3] 64-128-256", 4_697_162),
            ]
        )
    )
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown(out).splitlines() if line.strip()]
    assert lines[0] == [
        "network", "parameters", "top1/val", "top1/test", "training", "total",
    ]  # fmt: skip
    first = ["teacher", "WRN-28-10", "36,479,194"]
    assert lines[2] == [*first, "96.12 % ema", "96.00 %", "2:01:01", "2:02:01"]
    assert lines[3] == [*first, "95.12 %", "95.00 %", "2:01:01", "–"]
    assert lines[4] == ["alone", "ResNet [4, 4, 3] 64-128-256", "4,697,162", *"––––"]


def test_averaged_accuracies_alone_have_their_name() -> None:
    out = console(terminal=False)
    out.print(
        closing_table([ClosingRow("alone", "ResNet", 1, 0.9612, 0.96, 60.0, 61.0, "val_ema")])
    )
    assert "top1/val_ema" in shown(out) and "96.12 %  " in shown(out)


def test_closing_table_without_validation_has_no_column() -> None:
    out = console(terminal=False)
    out.print(closing_table([ClosingRow("alone", "ResNet", 100, None, 0.96, 60.0, 61.0)]))
    assert "top1/test" in shown(out) and "top1/val" not in shown(out)


def test_long_run_is_announced_once() -> None:
    total = START.epochs * START.steps_per_epoch
    slow = START.batch_size / (3 * 86_400 / total)  # images/s at which the run takes three days
    steps = [Step(k, 0, {"images_per_s": slow}) for k in (1, 2)]
    left = 3 * (total - 1) / total
    assert logged(START, *steps).count(f"at this pace {left:.1f} days are left") == 1
    assert "at this pace" not in logged(START, Step(1, 0, {"images_per_s": 9 * slow}))


def test_an_estimate_is_one_line_with_its_range() -> None:
    lines = logged(START, Estimate(9, 0, 6, 29 * 60.0, 25.2 * 60, 33.4 * 60))
    assert (
        lines.splitlines()[-1] == "about 29 min (25 to 33) of training, from the first 6 steps, "
        "without preparation and test"
    )


def test_each_step_moves_the_bar() -> None:
    times = iter((10.0, 12.0, 14.0))
    display = ProgressDisplay(console(terminal=False), lambda: next(times))
    display(START)
    for step in (1, 2, 3):
        display.progress(TRAINING_STEPS, step, 1200)
    out = console(terminal=False)
    out.print(display.bars())
    assert re.search(r"step +3/40 ", shown(out))
    assert "50 images/s" in shown(out), "two steps of 100 images in four seconds"
