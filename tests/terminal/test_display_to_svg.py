"""The progress display of a finished run as an SVG picture."""

import html
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distill.errors import UserError
from distill.events import End, Epoch, Event, Start, Step
from distill.recipe import recipes
from distill.runs.journal import Journal
from distill.runs.run_folder import write_json
from distill.terminal.display_to_svg import main, svg

START = Start(
    run="runs/x",
    role="student",
    recipe="student_alone",
    network="ResNet [4, 4, 3]",
    parameters=4_697_162,
    data="synthetic",
    train_images=4_500,
    val_images=500,
    n_classes=10,
    processes=1,
    device="cpu",
    precision="fp32",
    batch_size=100,
    epochs=20,
    steps_per_epoch=45,
    first_step=0,
)


def run(folder: Path, start: Start = START, split: str = "val") -> Path:
    """A finished run: a journal of 20 epochs and the figures of the closing table."""
    events: list[Event] = [start]
    for epoch in range(1, 21):
        last = 45 * epoch
        metrics = {"loss/total": 2.0, "images_per_s": 300.0}
        events += [Step(step, epoch - 1, metrics) for step in range(last - 40, last + 1, 5)]
        events.append(
            Epoch(epoch, last, {f"top1/{split}": epoch / 40}, True, 3.0, 60.0 - 3 * epoch)
        )
    end = End(20, {f"top1/{split}": 0.5, "top1/test": 0.4625}, 4_697_162, 61.0, "s.safetensors")
    folder.mkdir()
    recipe = recipes.load("tiny", [f"train.epochs={start.epochs}"]).recipe
    (folder / "recipe.toml").write_text(recipes.dumps(recipe))
    record = Journal(folder / "journal.jsonl")
    for event in [*events, end]:
        record(event)
    result = {
        "role": start.role,
        "network": start.network,
        "parameters": start.parameters,
        "teacher": {"runs": []},
        "metrics": end.metrics,
        "elapsed_s": end.elapsed_s,
        "epochs": start.epochs,
    }
    write_json(folder / "result.json", result)
    return folder


def text_of(picture: Path) -> str:
    """The text of the picture, line by line."""
    texts = re.findall(r"<text[^>]* y=\"([\d.]+)\"[^>]*>(.*?)</text>", picture.read_text())
    lines: dict[str, str] = {}
    for y, text in texts:
        lines[y] = lines.get(y, "") + html.unescape(text).replace("\xa0", " ")
    return "\n".join(lines.values())


def test_picture_shows_every_part_of_the_display(
    tmp_path: Path,
) -> None:
    svg(run(tmp_path / "a") / "journal.jsonl", tmp_path / "docs" / "run.svg")
    text = text_of(tmp_path / "docs" / "run.svg")
    assert "ResNet [4, 4, 3], 4,697,162 parameters" in text
    # three fifths of 20 epochs: the bars stand at the end of the 12th
    assert "epoch 12/20" in text and "epoch 14/20" not in text
    assert "epoch 5/20" in text and "epoch 4/20" not in text
    assert "━" in text
    assert re.search(r"alone.*50\.00 %.*46\.25 %.*1:01", text)
    ElementTree.parse(tmp_path / "docs" / "run.svg")


def test_picture_of_a_run_measuring_only_average(tmp_path: Path) -> None:
    svg(run(tmp_path / "a", split="val_ema") / "journal.jsonl", tmp_path / "run.svg")
    text = text_of(tmp_path / "run.svg")
    assert text.count("top1/val_ema 30.00 %") == 2  # the last epoch's line, and the bars
    assert "top1/val " not in text.partition("⋮")[0]
    assert re.search(r"alone.*50\.00 %.*46\.25 %.*1:01", text)


def test_bars_show_the_chosen_moment(tmp_path: Path) -> None:
    start = replace(START, epochs=21)  # the journal stops short of the plan: 567 steps of 945
    svg(run(tmp_path / "a", start) / "journal.jsonl", tmp_path / "run.svg")
    assert re.search(r"step +25/45", text_of(tmp_path / "run.svg"))


def test_picture_is_reproducible_and_loads_nothing(tmp_path: Path) -> None:
    journal = run(tmp_path / "a") / "journal.jsonl"
    svg(journal, tmp_path / "1.svg")
    svg(journal, tmp_path / "2.svg")
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()
    assert "url(https" not in (tmp_path / "1.svg").read_text()
    assert "font-face" not in (tmp_path / "1.svg").read_text()


def test_the_command_draws_a_run_folder(tmp_path: Path) -> None:
    main([str(run(tmp_path / "a")), "--out", str(tmp_path / "run.svg")])
    assert "python cli.py distill --recipe student_alone" in text_of(tmp_path / "run.svg")


@pytest.mark.long
def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match=r"a is not finished: it has no result\.json"):
        svg(folder / "journal.jsonl", tmp_path / "run.svg")


def test_a_run_without_a_finished_epoch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path)(START)
    with pytest.raises(UserError, match=r"journal\.jsonl has 1 event and no finished epoch"):
        svg(path, tmp_path / "run.svg")


def test_a_wrong_folder_ends_with_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "nothing"), "--out", str(tmp_path / "run.svg")])
    assert "nothing is not a run" in capsys.readouterr().err
