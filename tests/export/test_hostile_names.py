"""Every writer of a name, with every hostile name: what is written holds it as data."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.table import Table as RichTable
from rich.text import Text

from distill.export import huggingface, model_card, predictions_csv
from distill.export.finished_run import load_finished
from distill.report import comparison, page, run_report, table_html_csv_latex
from distill.report.page import FigureBlock, Table
from distill.runs.read_run_folder import RunRecord
from distill.runs.run_folder import RunFolder
from distill.terminal.literal_console import LiteralConsole
from distill.terminal.recipe_and_cache_tables import class_counts
from tests.cli.command_line import ALONE, REPO, SMALL, RunCli, assert_refused, write_pets
from tests.hostile import FOLDERS, NAMES
from tests.make_runs import train
from tests.report.test_run_report import LAYERS, Reader
from tests.runs.records import predictions, record

TENS = [(NAMES[k:] + NAMES)[:10] for k in range(0, len(NAMES), 10)]
ODD = ["[bold]x", ":smiley:", "\x1b[31mred", "a\nb", "\u202egnp", "caf\udce9", "=1+1", "<b>"]


def unsafe(text: str) -> set[str]:
    """Characters that no output may hold, but for line feeds."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {each for each in text if unicodedata.category(each) in kinds} - {"\n", "\u200d"}


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> RunFolder:
    """A finished run on class folders of odd names, in a folder of an odd name."""
    root = tmp_path_factory.mktemp("odd")
    settings = [*SMALL[3::2], *ALONE[1::2], "train.epochs=1"]
    source = json.dumps(str(write_pets(root / "pets", tuple(ODD))))
    return train(root / "runs" / "[bold]run\x1b[31m", *settings, f"data.source={source}")[0]


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    ["evaluate", "compare", "predict", "runs", "export", "report"],
)
def test_the_terminal_gets_names_as_data(command, odd, run_cli: RunCli, tmp_path):
    np.save("images.npy", np.zeros((2, 32, 32, 3), np.uint8))
    more = {
        "evaluate": [],
        "compare": [odd.path],
        "predict": ["--input", "images.npy"],
        "export": ["-f", "safetensors", "-f", "project1", "--out", tmp_path / "a\x1b[31m"],
        "report": ["--out", tmp_path / "a\x1b[31m\udcff.html"],
        "runs": [],
    }[command]
    run = odd.path.parent if command == "runs" else odd.path
    result = run_cli(command, run, *more)
    assert result.code == 0, result.err
    assert not unsafe(result.out + result.err)
    if command in ("evaluate", "predict", "compare"):
        for name in ("[bold]x", ":smiley:", "\\x1b[31mred", "a\\nb", "\\u202egnp", "caf\\xe9"):
            assert name in result.out, name


@pytest.mark.long
def test_the_screen_prints_every_name_as_data(capsys):
    screen = LiteralConsole()
    screen.print(class_counts(dict.fromkeys(NAMES, 1)))
    table = RichTable("name")
    for name in NAMES:
        table.add_row(name)
        screen.print(name)
        screen.print(Text(name))
    screen.print(table)
    text = capsys.readouterr().out
    assert not unsafe(text)
    for name in ("[/red] 1", "[bold]x 1", ":smiley: 1"):
        assert name in text


def test_a_message_holds_no_control_character(run_cli: RunCli):
    result = run_cli("evaluate", "runs/\x1b[31m\udcff\u202e")
    assert_refused(result, "runs/\\x1b[31m\\xff\\u202e is not a run")
    assert not unsafe(result.err)


@pytest.mark.long
def test_a_terminal_of_ascii_alone_gets_everything(odd, tmp_path):
    for command in (["evaluate", odd.path], ["runs", odd.path.parent], ["--help"], ["recipes"]):
        ended = subprocess.run(
            [sys.executable, REPO / "cli.py", *map(os.fsencode, command)],
            check=False,
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.isascii() and b"Traceback" not in ended.stderr


@pytest.mark.long
def test_class_folders_of_any_name_are_trained_on(odd, run_cli: RunCli):
    assert odd.result()["class_names"] == sorted(ODD)
    result = run_cli("data", "info", odd.path.parents[1] / "pets")
    assert result.code == 0 and not unsafe(result.out)


def test_path_that_is_not_utf8_is_refused(run_cli: RunCli):
    assert_refused(
        run_cli("distill", "--data", "a\udcff"), "a\\xff is not UTF-8", "Rename the folder"
    )
    assert_refused(run_cli("distill", "--teacher", "a\udcff"), "a\\xff is not UTF-8")
    assert_refused(
        run_cli("distill", *SMALL, *ALONE, "--out", "a\udcff"), "a\\xff cannot be a run folder"
    )
    assert not list(Path.cwd().iterdir())


def hostile(four: list[str]) -> RunRecord:
    known = record(f"run {four[3]}".replace("/", "-").replace("\0", "-"), 15)
    result = known.result | {
        "class_names": four,
        "recipe": four[0],
        "network": four[1],
        "device": four[2],
    }
    environment = {"command": ["cli.py", *four], four[3]: four[2]}
    return replace(
        known,
        result=result,
        environment=environment,
        predictions=predictions(15, with_teacher=True),
    )


@pytest.mark.long
@pytest.mark.parametrize("k", range(0, len(NAMES), 48))
def test_pages_figures_and_tables_hold_names_as_text(k):
    four = [NAMES[(k + 12 * i) % len(NAMES)] for i in range(4)]
    made = run_report.page(hostile(four), LAYERS)
    text = page.html(made)
    text.encode()
    assert not unsafe(text.replace("\xad", ""))
    harmless = replace(record("run", 15), environment={"command": ["cli.py"]})
    plain = Reader(page.html(run_report.page(harmless, LAYERS)))
    found = Reader(text)
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {"wbr"}
    assert not [name for _, given in found.tags for name in given if name.startswith("on")]
    for section in made.sections:
        for block in section.blocks:
            if isinstance(block, FigureBlock):
                ElementTree.fromstring(block.svg)
            if isinstance(block, Table):
                assert not unsafe(block.grid.latex()) and "\\input" not in block.grid.latex()
                rows = [*csv.reader(io.StringIO(block.grid.csv()))]
                assert len(rows) == len(block.grid.rows) + 1
                assert not [
                    x for row in rows for x in row if re.match(r"[=@\t\r]|[+-](?![\d.])", x)
                ]
    page.html(comparison.page([hostile(four), record("b", 10)]))


@pytest.mark.long
def test_the_model_card_holds_names_as_text(distilled):
    run = load_finished(distilled[0], None, None)
    plain = model_card.generate(run, needs_import=True)
    for ten in TENS:
        names = {"class_names": ten, "recipe": ten[0], "network": ten[1], "device": ten[2]}
        text = model_card.generate(replace(run, result=run.result | names), needs_import=True)
        text.encode()
        assert not unsafe(text)
        assert text.partition("\n---\n")[0] == plain.partition("\n---\n")[0]
        assert elements(text) == elements(plain), ten


def elements(card: str) -> list[str]:
    """What CommonMark and GitHub's tables make of the card, without its text."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.partition("\n---\n")[2])
    every = [each for token in tokens for each in (token, *(token.children or ()))]
    return [each.type for each in every if each.type not in ("text", "text_special")]


def test_the_config_of_the_hub_is_json(distilled):
    run = load_finished(distilled[0], None, None)
    for ten in TENS:
        known = huggingface.config(replace(run, result=run.result | {"class_names": ten}))
        assert json.loads(json.dumps(known))["label_names"] == ten


def test_predictions_are_a_csv_of_as_many_rows(tmp_path):
    for k, ten in enumerate(TENS):
        shares = np.full((10, 10), 0.1)
        out = tmp_path / f"{k}.csv"
        predictions_csv.write(
            predictions_csv.LabelledImages(tuple(ten), shares, tuple(ten), ()),
            out,
            probabilities=True,
        )
        rows = [*csv.reader(io.StringIO(out.read_text("utf-8")))]
        assert len(rows) == 11 and {len(row) for row in rows} == {11}
        cells = [*rows[0], *(row[0] for row in rows)]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t")]


def test_there_are_names_for_folders():
    assert len(FOLDERS) > 100
    assert (
        table_html_csv_latex.ValueTable(
            "a", "a", (table_html_csv_latex.Column("=1"),), [("x",)]
        ).csv()
        == "'=1\nx\n"
    )
