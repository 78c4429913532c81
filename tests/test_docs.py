"""What the README and docs/ say is read against the recipes, the tree and the command line."""

import ast
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import typer

import cli
from distill.events import End, Epoch, Start
from distill.recipe import recipe_json_schema, recipes, validation
from distill.recipe.count_parameters import count_networks
from distill.recipe.schema import Student
from distill.runs.journal import Journal
from distill.runs.run_folder import write_json
from docs import generate
from docs.recipe_keys import key_tables

REPO = Path(__file__).parents[1]
OURS = ("cli.py", "distill", "networks", "students", "teachers")
PAGES = "".join(
    (REPO / "docs" / f"{name}.md").read_text() for name in ("reference", "architecture")
)
BEGIN, END = generate.RECIPES.begin, generate.RECIPES.end


@pytest.mark.long
def test_generated_sections_are_up_to_date() -> None:
    for section in (
        generate.RECIPES,
        generate.MODULES,
        generate.NETWORKS,
        generate.RULES,
        generate.KEYS,
    ):
        written = section.document.read_text()
        assert section.rebuilt(written) == written, "stale; type: python -m docs.generate"
    assert generate.SCHEMA.read_text() == recipe_json_schema.text(), (
        "stale; type: python -m docs.generate"
    )


def test_each_recipe_has_a_row_with_its_facts() -> None:
    rows = generate.recipe_table().splitlines()[2:]
    paths = [path for _, path, _ in recipes.shipped()]
    assert len(rows) == len(paths) > 0
    print(f"{len(paths)} recipes read")
    for path in paths:
        (row,) = [row for row in rows if f"(../{path.relative_to(REPO).as_posix()})" in row]
        about = tomllib.loads(path.read_text())["about"]
        assert about["claim"] in row and about["command"] and about["teacher"]
        for key in ("hardware", "minutes", "accuracy"):
            assert (about[key] in row) == (about["accuracy"] != generate.NOT_YET)


@pytest.mark.long
def test_space_follows_a_long_file_name() -> None:
    assert "accuracy_and_calibration.py Compute accuracy" in generate.module_list()


def test_a_pipe_in_a_claim_splits_no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    about = generate.About(claim="a | b")
    monkeypatch.setattr(
        generate.recipes, "shipped", lambda: [("x", REPO / "recipes/x.toml", about)]
    )
    assert r"| a \| b |" in generate.recipe_table()


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "README.md"
    monkeypatch.setattr(generate, "RECIPES", replace(generate.RECIPES, document=path))
    monkeypatch.setattr(generate, "PICTURE", tmp_path / "run.svg")
    path.write_text(f"# Title\n\n{BEGIN}\n| old |\n{END}\n\nThe rest.\n")
    return path


@pytest.mark.long
def test_stale_readme_is_rebuilt_between_markers(readme: Path) -> None:
    before = readme.read_text()
    with pytest.raises(SystemExit, match=r"README.md is stale.*python -m docs.generate"):
        generate.main(["--check"])
    assert readme.read_text() == before
    generate.main([])
    generate.main(["--check"])
    after = readme.read_text()
    assert after == f"# Title\n\n{BEGIN}\n{generate.recipe_table()}\n{END}\n\nThe rest.\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "has 0 <!-- recipes:begin --> and 0 <!-- recipes:end -->"),
        (f"{END}\n{BEGIN}", "has 1 <!-- recipes:begin --> and 1 <!-- recipes:end -->"),
        (f"{BEGIN}\n{BEGIN}\n{END}", "has 2 <!-- recipes:begin --> and 1"),
    ],
)
def test_missing_markers_are_reported(
    readme: Path, capsys: pytest.CaptureFixture[str], text: str, found: str
) -> None:
    readme.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        generate.main([])
    assert found in capsys.readouterr().err
    assert readme.read_text() == text


@pytest.mark.long
def test_a_run_becomes_the_picture(readme: Path, tmp_path: Path) -> None:
    generate.main(["--run", str(finished_run(tmp_path / "run"))])
    assert "alone" in (tmp_path / "run.svg").read_text()


@pytest.mark.long
def test_a_picture_of_nothing_is_refused(
    readme: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        generate.main(["--run", str(tmp_path / "nowhere")])
    assert "nowhere is not a run: there is no such folder" in capsys.readouterr().err


def finished_run(folder: Path) -> Path:
    """The files of a student's run that a picture is drawn from."""
    start = Start(
        "r", "student", "kd", "ResNet", 9, "synthetic", 90, 9, 10, 1, "cpu", "fp32", 9, 2, 10, 0
    )
    record = Journal(folder / "journal.jsonl")
    for event in (start, Epoch(1, 10, {"loss/total": 2.0}, True, 1.0, 1.0)):
        record(event)
    record(End(2, {"top1/test": 0.5}, 9, 2.0, "w"))
    recipe = recipes.load("tiny").recipe
    (folder / "recipe.toml").write_text(recipes.dumps(recipe))
    result = {
        "role": "student",
        "teacher": {"runs": []},
        **{key: count_networks("tiny")[key] for key in ("network", "parameters")},
        "metrics": {"top1/test": 0.5},
        "elapsed_s": 2.0,
        "epochs": recipe.train.epochs,
    }
    write_json(folder / "result.json", result)
    return folder


# docs/architecture.md and docs/reference.md


def section(title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGES, re.DOTALL | re.MULTILINE)
    return found


def rows(title: str) -> list[list[str]]:
    """The cells of a section's tables, heads left out."""
    lines = [line.strip("| ") for line in section(title).splitlines() if line.startswith("|")]
    heads = [i - 1 for i, line in enumerate(lines) if line.startswith("---")]
    return [
        [cell.strip() for cell in line.split(" | ")]
        for i, line in enumerate(lines)
        if i not in heads and i - 1 not in heads
    ]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.long
def test_every_module_is_listed_with_its_docstring() -> None:
    listed = generate.module_list()
    paths = [p for name in OURS for p in ([REPO / name] if name.endswith(".py") else modules(name))]
    assert len(paths) > 150
    for path in paths:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, f"{path} has no docstring"
        assert re.search(rf"\b{path.stem}\b", listed), path
    folders = {path.parent.relative_to(REPO).as_posix() for path in paths} - {"."}
    assert folders == set(generate.PACKAGES)


def modules(package: str) -> list[Path]:
    return [path for path in (REPO / package).rglob("*.py") if path.name != "__init__.py"]


def test_every_path_of_the_architecture_exists() -> None:
    folders = ("distill/", "networks/", "students/", "teachers/", "tests/", "docs/", "benchmarks/")
    paths = [name for name in quoted(PAGES) if name.startswith(folders) and "NAME" not in name]
    assert len(paths) > 20
    assert [name for name in paths if not (REPO / name).exists()] == []


def test_the_command_line_is_the_one_described() -> None:
    documented = {}
    for command, _ in rows("The command line"):
        if command.startswith("`"):  # the other table is that of the exit codes
            first, *options = quoted(command)
            documented[re.split(" [A-Z[]", first)[0]] = set(options)
    assert documented == dict(commands(typer.main.get_command(cli.app), ""))


def commands(command: object, name: str) -> list[tuple[str, set[str]]]:
    inner = getattr(command, "commands", None)
    if inner is not None:
        return [
            pair for key, each in inner.items() for pair in commands(each, f"{name} {key}".strip())
        ]
    return [(name, {o for p in command.params for o in p.opts if o.startswith("--")})]


def test_every_key_of_a_recipe_has_a_sentence() -> None:
    for key, field in validation.keys().items():
        table = validation.table_of(field)
        text = " ".join(((field.description if table is None else table.__doc__) or "").split())
        assert re.fullmatch(r"[A-Z0-9].{8,}[.…]", text), f"{key}: {text!r}"


def test_key_tables_have_type_range_and_default() -> None:
    sections = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", key_tables(), re.M | re.S))
    rows_of = {
        heading: {row.split("`")[1] for row in text.splitlines() if row.startswith("| `")}
        for heading, text in sections.items()
    }
    assert rows_of["`[loss.dist]`"] == {"beta", "gamma", "temperature"}
    assert rows_of["Every term of `[loss]`"] == {
        "weight", "when.begin", "when.end", "when.warmup", "when.fade_to",
    }  # fmt: skip
    assert rows_of["`[teacher]`"] == {
        "network", "depth", "widen", "dropout", "runs", "draw", "mirror", "weights",
    }  # fmt: skip
    assert rows_of["`[student]`"] == set(Student.model_fields)
    assert "| `lr` | a number (above 0, at most 1e+30) | `0.1` |" in sections["`[optim]`"]
    assert (
        "| `weight` | a number (at least 0, at most 1_000_000_000) | `0.9` |"
        in (sections["`[loss.kd]`"])
    )
    assert "Off if the table is absent." in sections["`[ema]`"]


def test_key_tables_contain_every_key() -> None:
    text = key_tables()
    for key, field in validation.keys().items():
        name = key.rpartition(".")[2]
        is_table = validation.table_of(field) is not None and name not in ("when", "args")
        row = f"| `when.{name}` |" if ".when." in key else f"| `{name}` |"
        assert (f"### `[{key}]`" if is_table else row) in text or name == "when", key


def test_the_libraries_are_those_declared_and_used() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    declared = {re.split("[><=]", each)[0] for each in project["dependencies"]}
    documented = dict(re.findall(r"`([\w-]+)`: (.*?)(?:; (?=`)|\.\n)", section("Libraries")))
    assert set(documented) == declared
    paths = [p for root in OURS[1:] for p in (REPO / root).rglob("*.py")] + [REPO / "cli.py"]
    source = "\n".join(path.read_text() for path in paths)
    for name, why in documented.items():
        module = {"Pillow": "PIL", "tomli-w": "tomli_w"}.get(name, name)
        imported = re.search(rf"^\s*(import|from) {module}\b", source, re.MULTILINE) is not None
        assert imported == (re.search("no file imports it", why) is None), name


def test_measured_figures_of_readme_are_those_of_results() -> None:
    readme = (REPO / "README.md").read_text()
    made = json.loads((REPO / "results" / "two_cores_kd_cutmix.json").read_text())
    for key in ("runs", "control"):
        assert f"{100 * made[key]['mean']:.2f} ± {100 * made[key]['std']:.2f} %" in readme
    difference = made["difference"]
    assert f"{100 * difference['mean']:.2f} ± {100 * difference['std']:.2f} points" in readme
    assert f"{made['teacher'][0]['metrics']['top1/test']:.2%}".replace("%", " %") in readme


def test_epochs_of_readme_are_those_of_the_recipes() -> None:
    readme = " ".join((REPO / "README.md").read_text().split())
    of_teacher, of_student = (
        recipes.load(name).recipe.train.epochs for name in ("teacher_wrn", "kd_cutmix")
    )
    assert f"WRN-28-10, {of_teacher} epochs, and kd_cutmix, {of_student} |" in readme
    assert f"teacher, trained for {of_teacher} epochs, and a student of" in readme
    assert f"4,697,162 parameters, {of_student} epochs." in readme


def test_every_link_of_the_readme_leads_somewhere() -> None:
    readme = (REPO / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (REPO / link).exists()] == []


def test_cluster_table_matches_the_shipped_student() -> None:
    student = count_networks("kd_cutmix")
    teacher_macs = 5.2433e9  # of a WRN-28-10 on 32x32 pixels
    ring_bytes = 4 * student["parameters"]
    document = (REPO / "docs" / "cluster.md").read_text()
    assert f"P = {student['parameters']:,}" in document
    found = re.findall(
        r"^\| (\d+).* \| ([\d,]+) \| ([\d.]+) ms \|(.*)\|(.*)\|(.*)\|", document, re.M
    )
    assert len(found) == 6
    for n, batch, *shown in ((int(n), int(b.replace(",", "")), *rest) for n, b, *rest in found):
        flop = 2 * (3 * student["macs"] + teacher_macs) * batch
        whole_ms, launched_ms = 1000 * flop / 200e12, 4.0
        link = 300e9 if n <= 8 else 25e9
        ring_ms = 1000 * 2 * (n - 1) / n * ring_bytes / link
        step_ms = whole_ms / n + launched_ms + ring_ms
        gain = (whole_ms + launched_ms) / step_ms
        wanted = [whole_ms / n, ring_ms, step_ms, gain]
        numbers = [float(re.sub("[^0-9.]", "", cell) or 0) for cell in shown]
        for value, written in zip(
            wanted if n > 1 else [wanted[0], 0, step_ms, 0], numbers, strict=True
        ):
            assert written == pytest.approx(value, abs=0.06)
