"""The page of one run: its sections, what it omits, and hostile names as text."""

import csv
import io
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch import nn

from distill import statistics
from distill.components import layer_summary
from distill.errors import Failure, UserError
from distill.events import Epoch
from distill.models import epoch_weights
from distill.report import comparison, page, run_report
from distill.report.page import FigureBlock, Page, Paragraph, Preformatted, Section, Table
from distill.report.table_html_csv_latex import Column, ValueTable
from distill.runs.journal import Journal
from distill.runs.lock import LockHolder
from distill.runs.read_run_folder import RunRecord, read
from distill.runs.run_folder import RunFolder
from distill.training.run import killed_note
from tests.make_runs import Events
from tests.runs.records import ALONE, SCRIPT, averaged_alone, curve_of, hostile, predictions, record
from tests.terminal.test_display_to_svg import START

LAYERS = [("conv", "Conv2d", (4, 32, 32), 108), ("head", "Linear", (10,), 50)]


class Reader(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def words(made: Page) -> str:
    """What a page says beside its figures and tables."""
    blocks = [block for section in made.sections for block in section.blocks]
    return " ".join(
        [*made.notes, *(block.text for block in blocks if isinstance(block, Paragraph))]
    )


def shown(known: RunRecord) -> Reader:
    return Reader(page.html(run_report.page(known, LAYERS)))


@pytest.fixture(scope="module")
def hostile_page() -> Reader:
    return shown(hostile())


@pytest.fixture(scope="module")
def written(distilled: tuple[RunFolder, Events], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real run, with a journal as the CLI writes it."""
    folder, events = distilled
    copy = tmp_path_factory.mktemp("reports") / "student"
    shutil.copytree(folder.path, copy)
    journal = Journal(copy / "journal.jsonl")
    for event in events:
        journal(event)
    run = RunFolder(copy)
    known = read(run)
    assert known.role is not None
    rows = layer_summary.layers_of_recipe(known.recipe, known.role, 10)
    path = run_report.report_path([run], None)
    assert run_report.write(run, path, rows) == copy / "report_files"
    return path


@pytest.mark.long
def test_only_reports_are_replaced(written: Path, tmp_path: Path) -> None:
    run = RunFolder(written.parent)
    assert run_report.report_path([run], None) == written
    own = tmp_path / "index.html"
    earlier = written.read_text().replace('<meta name="generator" content="Understudy">', "")
    for text in (written.read_text(), earlier):
        own.write_text(text)
        assert run_report.report_path([run], own) == own
    own.write_text("<!doctype html><title>My page</title>" + "x" * 9000 + earlier)
    with pytest.raises(
        UserError, match="index.html exists and is not a report written by this program"
    ):
        run_report.report_path([run], own)


@pytest.mark.long
def test_report_of_a_real_run_is_complete(written: Path) -> None:
    known, text = read(RunFolder(written.parent)), Reader(written.read_text()).text
    top1 = known.test_metric("top1")
    assert top1 is not None and known.predictions is not None
    low, high = statistics.wilson(
        round(top1 * len(known.predictions.labels)), len(known.predictions.labels)
    )
    assert f"{100 * top1:.2f} %" in text
    assert f"95 % interval [{100 * low:.2f}, {100 * high:.2f}] %" in text
    assert f"{known.parameters:,} parameters in" in text
    for title in ("Learning", "Calibration", "The most confident mistakes", "The network"):
        assert title in text
    for name in known.class_names:
        assert name in text
    assert known.result["weights"] in text and "loss.kd.temperature" not in text
    # against the shipped recipe of that name
    assert "What differs from tiny as shipped" in text and "1 → 2" in text


def test_figures_and_tables_lie_beside_it(written: Path) -> None:
    beside = written.parent / "report_files"
    figures = {path.name for path in (beside / "figures").iterdir()}
    names = {"error", "loss", "terms", "learning_rate", "classes", "confusion", "reliability"}
    assert figures == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")}
    tables = {path.stem for path in (beside / "tables").glob("*.tex")}
    assert {"classes", "confused", "layers", "environment"} <= tables
    assert tables == {path.stem for path in (beside / "tables").glob("*.csv")}
    text = (beside / "tables" / "layers.csv").read_text().splitlines()
    assert text[0] == "layer,kind,output channels,output height,output width,parameters"


@pytest.mark.long
def test_numbers_in_csv_are_plain_numbers() -> None:
    known = replace(record("kd", 15), predictions=predictions(15, with_teacher=True))
    other = record("alone", 12, *ALONE)
    of_text = {"about", "recipe", "recipe_differences", "differences_1", "fingerprints"}
    words_in = {"class", "predicted as", "measure", "test split unit", "layer", "kind", "group"}
    words_in |= {"run", "first", "second", "by"}
    words_in |= {"recipe", "network", "teacher", "data", "device", "torch"}
    checked = set()
    for made in (run_report.page(known, LAYERS), comparison.page([known, other])):
        blocks = [block for section in made.sections for block in section.blocks]
        for grid in (block.grid for block in blocks if isinstance(block, Table)):
            if grid.name in of_text:
                continue
            for row in csv.DictReader(io.StringIO(grid.csv())):
                for head, cell in row.items():
                    if head not in words_in:
                        assert cell == "" or math.isfinite(float(cell)), (grid.name, head, cell)
                        assert "," not in cell and "%" not in cell
                        checked.add(head)
    assert {
        "test accuracy mean (fraction)",
        "training (s)",
        "NLL (nats)",
        "output height",
    } <= checked
    assert {
        "test split",
        "95 % interval low (fraction)",
        "share of the class (fraction)",
    } <= checked


@pytest.mark.long
def test_main_measures_have_units_in_csv() -> None:
    known = replace(record("kd", 15), predictions=predictions(15, with_teacher=True))
    blocks = run_report.page(known, LAYERS).sections[1].blocks
    [grid] = [b.grid for b in blocks if isinstance(b, Table) and b.grid.name == "figures"]
    assert grid.cells[0] == ["accuracy", "75.00 %", "[53.13, 88.81] %"]  # Wilson's of 15 in 20
    rows = list(csv.reader(io.StringIO(grid.csv())))
    assert rows[0][:3] == ["measure", "test split", "test split unit"]
    assert rows[1][:3] == ["accuracy", "0.75", "fraction"]
    assert {row[0]: row[2] for row in rows[1:]} == {
        "accuracy": "fraction",
        "NLL": "nats",
        "calibration error": "fraction",
        "same prediction as the teacher": "fraction",
        "KL(teacher || student)": "nats",
    }


def test_page_loads_nothing(written: Path) -> None:
    text = written.read_text()
    tags = Reader(text).tags
    (policy,) = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy
    for tag, attributes in tags:
        assert tag not in {"script", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"@import|@font-face|url\((?!['\"]?(#|data:))", text)


@pytest.mark.long
def test_the_same_run_is_the_same_page(written: Path) -> None:
    known = read(RunFolder(written.parent))
    rows = layer_summary.layers_of_recipe(known.recipe, "student", 10)
    assert page.html(run_report.page(known, rows)) == written.read_text()


def test_every_drawing_is_sound_markup(written: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", written.read_text(), re.DOTALL)
    assert len(drawings) == 7
    for drawing in drawings:
        ElementTree.fromstring(drawing)


@pytest.mark.long
def test_whatever_came_from_outside_is_text(hostile_page: Reader) -> None:
    tags = hostile_page.tags
    assert "script" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert sources and all(each and each.startswith("data:image/png;base64,") for each in sources)
    for text in (
        SCRIPT,
        "</title><script>alert(2)</script>",
        "<svg onload=alert(1)>",
        "<img src=x onerror=alert(1)> claim",
        "$\\frac{$ {{ 7 * 7 }}",
        "</svg>",
        "<i>cpu</i>",
        "<b>2</b>",
    ):
        assert text in hostile_page.text, text
    assert hostile_page.text.count(SCRIPT) > 8


@pytest.mark.long
def test_several_runs_with_hostile_names_are_text_too() -> None:
    other = replace(hostile(), recipe=record("a", 3, "student.width=8").recipe)
    read_back = Reader(page.html(comparison.page([hostile(), other])))
    assert "script" not in {tag for tag, _ in read_back.tags}
    assert "<b onclick=alert(1)>run" in read_back.text
    assert not [name for _, known in read_back.tags for name in known if name == "onclick"]


@pytest.mark.long
def test_mistakes_have_label_opinions_and_pixels() -> None:
    text = shown(replace(record("kd", 18), predictions=predictions(18, with_teacher=True))).text
    assert "2 of 2 mistakes, the most confident first" in text
    # image 18 is of class 2, "c"; the student says d, the teacher c
    share = 100 * 2.718281828**4 / (2.718281828**4 + 3)
    assert f"c test image 18 student d {share:.1f} %" in text
    assert "teacher c " in text


@pytest.mark.long
def test_teacher_has_its_split_and_test_accuracy() -> None:
    known = replace(record("kd", 18), predictions=predictions(18, with_teacher=True))
    teacher = known.result["teacher"] | {"top1": 0.3}
    text = shown(replace(known, result=known.result | {"teacher": teacher})).text
    assert "teacher's held-out accuracy 30.00 % on " in text and "; on the test images " in text
    assert "its teacher 30.00 %" not in text


def test_paths_in_tables_break_after_slashes() -> None:
    columns = (Column("set by", is_number=False),)
    grid = ValueTable("recipe", "", columns, [("recipes/ingredients/two_cores_&_more.toml",)])
    text = page.html(Page("t", "l", [], [Section("s", [Table(grid)])]))
    assert "recipes/<wbr>ingredients/<wbr>two_cores_&amp;_more.toml" in text


@pytest.mark.long
def test_password_in_source_of_data_is_hidden() -> None:
    known = record("kd", 15)
    source = "https://user:hunter2@example.org/images"
    data = known.recipe.data.model_copy(update={"source": source})
    known = replace(known, recipe=known.recipe.model_copy(update={"data": data}))
    text = words(run_report.page(known, LAYERS)) + run_report.lead(known)
    assert "https://***:***@example.org/images" in text and "hunter2" not in text


@pytest.mark.long
def test_held_out_logits_give_a_temperature() -> None:
    known = replace(record("kd", 15), predictions=predictions(15, held_out=True))
    text = shown(known).text
    assert "dividing its logits by the temperature" in text and "overconfident" in text
    assert "this lowers the calibration error from " in text and " to 0.00 %. No pred" in text
    assert "temperature scaled, ECE 0.00 %" in text  # fitted on the same logits


@pytest.mark.long
@pytest.mark.parametrize(
    ("known", "message"),
    [
        (record("a", 15), "no temperature was fitted: it may not be fitted on the test split"),
        (record("a", 15), "This run has no teacher's predictions"),
        (record("a", 15), "There is no environment.json"),
        (record("a", 20), "There are none."),
        (record("a", 9, finished=False), "not finished: this page shows 2 epochs of 5"),
        (record("a", 9, finished=False), "There are no predictions: the run is not finished"),
        (
            replace(record("a", 9), predictions=None),
            "no predictions: its evaluation.npz is missing",
        ),
        (
            replace(record("a", 9), predictions=None),
            "The test accuracy is not verified: evaluation.npz is missing or damaged.",
        ),
        (replace(record("a", 9), events=()), "The journal has no epoch and no step yet"),
        (replace(record("a", 9), events=()), "The journal has no start event"),
        (
            replace(record("a", 9, finished=False), events=()),
            "is not finished: this page shows 0 epochs",
        ),
        (record("a", 9), "a note of the head"),
        (
            replace(record("a", 9), result=record("a", 9).result | {"recipe": "my_own"}),
            "No recipe named my_own comes with the program",
        ),
        (
            replace(record("a", 9), test_curve=curve_of(0.4)),
            "weights of 1 saved epoch, on unaugmented images. Nothing was selected by them",
        ),
        (
            replace(
                record("a", 9),
                test_curve={n: curve_of(top1)[1] for n, top1 in ((1, 0.4), (2, 0.52), (3, 0.51))},
            ),
            "on the test split is epoch 2, with 52.00 %. Some publications give this accuracy",
        ),
        (
            replace(
                record("a", 9),
                result=record("a", 9).result | {"epoch": 2},
                test_curve={n: curve_of(top1)[1] for n, top1 in ((1, 0.4), (2, 0.52))},
            ),
            "on the test split is epoch 2, whose weights are those of this run.",
        ),
    ],
)
def test_missing_parts_are_explained(known: RunRecord, message: str) -> None:
    assert message in words(run_report.page(known, LAYERS))


def test_notes_on_the_process_are_left_out(tmp_path: Path) -> None:
    folder, network = RunFolder(tmp_path), nn.Linear(1, 1)
    notes = (
        *killed_note(LockHolder("host", 7, "2026-01-01 10:00:00")),
        epoch_weights.plan(folder, "auto", 3, 0, network).note,
        "2 of 3 views of the teacher's logits are cached in /c, 1 MB for all of them",
        "a note on the result",
    )
    run = record("a", 9)
    run = replace(run, events=(replace(START, notes=notes), *run.events[1:]))
    head = run_report.page(run, LAYERS).notes
    assert [note for note in head if note in notes] == ["a note on the result"]


@pytest.mark.long
def test_unknown_network_is_reported() -> None:
    assert "The network is unknown" in words(run_report.page(record("a", 9), []))


def recipe_grid(known: RunRecord) -> list[list[str]]:
    [section] = [s for s in run_report.page(known, LAYERS).sections if s.title == "The recipe"]
    [grid] = [b.grid for b in section.blocks if isinstance(b, Table) and b.grid.name == "recipe"]
    return grid.cells


@pytest.mark.long
def test_recipe_table_leaves_out_defaults() -> None:
    known = record("a", 15, "optim.lr=0.25", "loss.kd.temperature=5", "ema.decay=0.999")
    rows = dict(row[:2] for row in recipe_grid(known))
    assert rows["optim.lr"] == "0.25" and rows["loss.kd.temperature"] == "5.0"
    assert rows["ema"].startswith("{decay = 0.999") and "optim.momentum" not in rows
    assert "Keys at their defaults are left out: python cli.py recipes tiny" in words(
        run_report.page(known, LAYERS)
    )


@pytest.mark.long
def test_recipe_table_says_what_set_a_key() -> None:
    origins = {"optim.lr": "--set", "ema.decay": "recipes/kd.toml", "ema.warmup": "default"}
    known = record("a", 15, "optim.lr=0.25", "ema.decay=0.999")
    rows = {
        key: origin
        for key, _, origin in recipe_grid(
            replace(known, environment={"recipe_origins": origins | {"train.epochs": "default"}})
        )
    }
    assert rows["optim.lr"] == "--set" and rows["ema"] == "recipes/kd.toml"
    assert rows["train.epochs"] == "–"


@pytest.mark.long
def test_a_measured_accuracy_of_the_recipe_is_shown() -> None:
    known = record("a", 15)
    about = known.recipe.about.model_copy(update={"measured_accuracy": 71.46, "seeds": 3})
    recipe = known.recipe.model_copy(update={"about": about})
    text = shown(replace(known, recipe=recipe)).text
    assert "71.46" in text and "measured_accuracy" in text


@pytest.mark.long
def test_unfinished_run_is_reported_partly(written: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for name in ("recipe.toml", "journal.jsonl"):
        shutil.copy(written.parent / name, run.path / name)
    known = read(run)
    assert not known.is_finished and known.role == "student" and known.n_classes == 10
    assert "not finished: this page shows 2 epochs of 2" in words(run_report.page(known, LAYERS))


@pytest.mark.parametrize(
    ("runs", "out", "path"),
    [
        (["a"], None, "a/report.html"),
        (["a"], "b", "b/report.html"),
        (["a"], "b.html", "b.html"),
        (["a", "b"], "c", "c/report.html"),
    ],
)
def test_where_it_goes(runs: list[str], out: str | None, path: str) -> None:
    folders = [RunFolder(Path(run)) for run in runs]
    assert run_report.report_path(folders, Path(out) if out else None) == Path(path)


def test_several_runs_need_an_output_folder() -> None:
    folders = [RunFolder(Path("a")), RunFolder(Path("b"))]
    with pytest.raises(UserError, match=r"a report of 2 runs.*\n.*--out DIR"):
        run_report.report_path(folders, None)


def test_report_is_page_or_in_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"x.htm is neither a folder nor an HTML file.\nGive DIR, or NAME.html"
    ):
        run_report.report_path([RunFolder(tmp_path)], tmp_path / "x.htm")


@pytest.mark.long
def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    made = replace(run_report.page(record("a", 9), LAYERS), sections=[])
    with pytest.raises(Failure, match=r"cannot be written: .*\n.*--out DIR"):
        page.write(made, tmp_path / "a" / "report.html")


@pytest.mark.long
@pytest.mark.parametrize("name", ["report_files", "report_files/figures", "report_files/tables"])
def test_report_is_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    for file in ("loss.pdf", "layers.csv", "figures/loss.pdf", "tables/layers.csv"):
        (mine / file).parent.mkdir(parents=True, exist_ok=True)
        (mine / file).write_text("mine")
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    with pytest.raises(UserError, match=rf"^{link} is a symbolic link: .*\nDelete it, or .*--out"):
        page.write(run_report.page(record("a", 9), LAYERS), tmp_path / "run" / "report.html")
    assert {file.read_text() for file in mine.rglob("*.*")} == {"mine"}
    assert len(list(mine.rglob("*"))) == 6


@pytest.mark.long
def test_linked_files_of_a_report_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    tables = tmp_path / "run" / "report_files" / "tables"
    tables.mkdir(parents=True)
    for link in (tables / "layers.csv", tmp_path / "run" / "report.html"):
        link.symlink_to(tmp_path / "mine")
    page.write(run_report.page(record("a", 9), LAYERS), tmp_path / "run" / "report.html")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tables / "layers.csv").read_text().startswith("layer,kind,output channels,")


def test_an_unfinished_run_shows_the_best_so_far() -> None:
    facts = {
        each.name: each for each in run_report.page(record("a", 9, finished=False), LAYERS).facts
    }
    assert facts["held-out accuracy"].value == "50.00 %"  # of the average, in the journal
    assert facts["test accuracy"].value == "–"


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_whose_average_alone_was_measured(finished: bool) -> None:
    """Its curves and accuracy are shown, and no note on missing held-out images."""
    made = run_report.page(averaged_alone(record("a", 9, finished=finished)), LAYERS)
    facts = {each.name: each for each in made.facts}
    assert facts["held-out accuracy"].value == "50.00 %"
    assert "Nothing was held out" not in words(made)
    [learning] = [section for section in made.sections if section.title == "Learning"]
    error, *_ = [block for block in learning.blocks if isinstance(block, FigureBlock)]
    names = [line.get_label() for line in error.figure.axes[0].lines]
    assert error.name == "error" and names == ["held-out, averaged"]


@pytest.mark.long
def test_run_without_hold_out_is_explained() -> None:
    known = averaged_alone(record("a", 9))
    losses = [
        replace(event, metrics={k: v for k, v in event.metrics.items() if "/val" not in k})
        if isinstance(event, Epoch)
        else event
        for event in known.events
    ]
    assert "Nothing was held out" in words(
        run_report.page(replace(known, events=tuple(losses)), LAYERS)
    )


@pytest.mark.long
def test_old_command_is_shown_without_password():
    command = ["cli.py", "sweep", "--storage", "postgresql://u:a/s3cret@h/d?sslpassword=s3cret"]
    text = shown(replace(record("run", 15), environment={"command": command})).text
    assert "s3cret" not in text and "postgresql://u:***@h/d?sslpassword=***" in text


@pytest.mark.long
def test_commands_train_the_run_from_the_beginning() -> None:
    known = record("a b", 15, "optim.lr=0.25", "teacher.runs=['runs/t']")
    teacher = {"runs": ["runs/t"], "fingerprint": "ab", "top1": None}
    made = run_report.page(replace(known, result=known.result | {"teacher": teacher}), LAYERS)
    [listing] = [b for b in made.sections[-1].blocks if isinstance(b, Preformatted)]
    assert listing.text == (
        "python cli.py distill --recipe tiny --set optim.lr=0.25 --teacher runs/t "
        "--data synthetic --out 'runs/a b'"
    )
    assert "How the teacher runs/t was trained is unknown" in words(made)


TYPED = ["cli.py", "distill", "--recipe", "kd", "--out", "runs/run"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("runs", "typed", "listed"),
    [
        (["runs/a"], TYPED, "python cli.py distill --recipe kd --out runs/run --teacher runs/a"),
        (["a", "b c"], TYPED, "--out runs/run --teacher a --teacher 'b c'"),
        ([], TYPED, "--out runs/run"),
        (["runs/a"], [*TYPED, "--teacher", "runs/a"], "--out runs/run --teacher runs/a"),
        (["runs/a"], [*TYPED, "--teacher=runs/a"], "--out runs/run --teacher=runs/a"),
        (["runs/a"], [*TYPED, "-t", "runs/a"], "--out runs/run -t runs/a"),
        (["a"], [*TYPED, "--set", "teacher.runs=['a']"], "--set 'teacher.runs=['\"'\"'a'\"'\"']'"),
        (["runs/a"], ["launcher.py", "-f", "kernel.json"], "python launcher.py -f kernel.json"),
    ],
)
def test_the_command_to_repeat_names_the_teacher(
    runs: list[str], typed: list[str], listed: str
) -> None:
    known = record("run", 15, f"teacher.runs={runs}")
    made = run_report.page(replace(known, environment={"command": typed}), LAYERS)
    [_, listing] = [b for b in made.sections[-1].blocks if isinstance(b, Preformatted)]
    assert listing.text.endswith(listed)
    notes = [b.text for b in made.sections[-1].blocks if isinstance(b, Paragraph)]
    is_added = runs and typed == TYPED
    assert any("The run selected its teacher itself" in note for note in notes) == bool(is_added)
