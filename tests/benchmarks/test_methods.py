"""The study of many methods, and the flipping of signs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import methods, signs
from distill.recipe import recipe_variants, recipes
from distill.recipe.loss_schema import Losses
from students.design import Design
from teachers.wrn_cost import WrnDesign
from tests.make_runs import train

pytestmark = pytest.mark.slow  # a benchmark's script, not the library


def test_recipes_that_differ_in_teacher_share_a_control(tmp_path) -> None:
    one, two, mixed = (
        methods.control(recipes.load(f"{name}+two_cores").recipe, tmp_path)
        for name in ("kd", "at", "soft_mix")
    )
    assert one == two != mixed
    assert list(recipes.read(one).loss.terms()) == ["hard"]


def test_default_recipes_have_every_loss_term() -> None:
    terms = set()
    for name in methods.METHODS:
        overrides = methods.OVERRIDES.get(name, ())
        terms |= set(recipes.load(f"{name}+{methods.INGREDIENT}", overrides).recipe.loss.terms())
    assert terms == set(Losses.model_fields) - {"simkd"}  # its student has a projector


def test_student_of_fsp_has_the_teachers_channels() -> None:
    recipe = recipes.load("fsp+two_cores", methods.OVERRIDES["fsp"]).recipe
    assert recipe.student is not None and recipe.teacher is not None
    student = Design.of(**recipe.student.spec())
    teacher = WrnDesign(recipe.teacher.depth, recipe.teacher.widen)
    assert (student.stem_width, *student.channels) == (
        16,
        *(16 * teacher.widen * k for k in (1, 2, 4)),
    )


def test_runs_of_a_study_are_typed_commands() -> None:
    kd, at = (recipes.load(f"{name}+two_cores").recipe for name in ("kd", "at"))
    alone = recipe_variants.control_recipe(kd)
    typed = [
        methods.command("x", recipe, 3, Path("out"), ["train.epochs=2"], "T")[2:]
        for recipe in (kd, at, alone)
    ]
    assert typed[0][:5] == ["distill", "--recipe", "x", "--teacher", "T"]
    assert [("cache={}" in line, "--teacher" in line) for line in typed] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert all(line[-3:] == ["--out", "out", "--resume"] for line in typed)
    assert all("train.seed=3" in line and "data.seed=3" in line for line in typed)


def test_study_tabulates_every_recipe_and_its_control(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "train", in_this_process)
    given = SimpleNamespace(
        recipes=["tiny"], ingredient="ema", seeds=[0, 1], workers=1,
        overrides=["train.epochs=1"], teacher=str(teacher),
    )  # fmt: skip
    runs, controls = methods.trained(given, tmp_path)
    assert set(runs) == {"tiny", controls["tiny"]}
    rows = methods.table(runs, controls)
    gains = [
        methods.top1(distilled) - methods.top1(alone)
        for distilled, alone in zip(runs["tiny"], runs[controls["tiny"]], strict=True)
    ]
    assert rows["tiny"]["difference"]["values"] == gains
    printed = methods.markdown(rows).splitlines()
    assert len(printed) == 4 and sum("a control" in line for line in printed) == 1


def in_this_process(line: list[str], out: Path) -> None:
    """What the study types, without a process of its own."""
    sets = [line[i + 1] for i, word in enumerate(line) if word == "--set"]
    if "--teacher" in line:
        sets.append(f"teacher.runs=['{line[line.index('--teacher') + 1]}']")
    train(out, *sets, recipe=line[line.index("--recipe") + 1])


def test_every_sign_of_the_arithmetic_is_flipped_once() -> None:
    source = "def f(a, b, dim=-1):\n    c = (a +\n         b) - 1\n    return -c.sum(-1) * b[:-2]\n"
    flipped = dict(signs.signs(source))
    assert sorted(flipped) == [2, 3, 4]
    assert "c = (a -\n" in flipped[2]
    assert "b) + 1" in flipped[3]
    assert "return +c.sum(-1) * b[:-2]" in flipped[4]


@pytest.mark.parametrize(
    ("test", "term"),
    [
        ("tests/losses/test_properties.py::test_finite_under_bfloat16_autocast[dkd-gap]", "dkd"),
        ("tests/losses/test_properties.py::test_descent_lowers_it[soft_mix]", "soft_mix"),
        ("tests/losses/test_rkd.py::test_equals_the_sums_written_out[4]", "rkd"),
        ("tests/training/test_golden.py::test_golden_losses_of_every_term[kd]", "kd"),
        ("tests/losses/test_properties.py::test_of_all", "properties"),
        ("tests/losses/test_published_weights.py::test_x[crd_kd-64]", "crd"),
        ("tests/losses/test_published_weights.py::test_one_map_of_nst_is_the_authors", "nst"),
        ("tests/losses/test_published_weights.py::test_stages_at_the_end", "published_weights"),
    ],
)
def test_term_of_a_test_is_found(test: str, term: str) -> None:
    assert signs.whose(test) == term


def test_flip_must_fail_its_own_tests_only() -> None:
    golden = f"{signs.GOLDEN}::test_golden_losses_of_every_term"
    own = "tests/losses/test_kd.py::test_x"
    assert signs.verdict("kd", {own, f"{golden}[kd]", f"{golden}[multi_temperature]"}) == {
        "own": 1,
        "golden": True,
        "others": [],
    }
    assert signs.verdict("kd", {f"{golden}[sp]"}) == {"own": 0, "golden": False, "others": ["sp"]}


def test_tests_of_unrelated_terms_are_left_out() -> None:
    """`ctkd` and `mlkd` import the file of `kd`; no file imports that of `wkd`."""
    ids = {
        name: f"tests/losses/test_{name}.py::test_x" for name in ("kd", "ctkd", "wkd", "objective")
    }
    assert {"kd", "ctkd", "mlkd"} <= signs.importers("kd")
    assert signs.importers("wkd") == {"wkd"}
    assert signs.tests_of("wkd", list(ids.values())) == [ids["wkd"], ids["objective"]]
    assert signs.tests_of("kd", list(ids.values())) == [ids["kd"], ids["ctkd"], ids["objective"]]


def test_failing_tests_of_a_copy_are_found(tmp_path: Path) -> None:
    """The copy's modules are imported, not those of this process."""
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "__init__.py").touch()
    (tmp_path / "distill" / "errors.py").write_text("VALUE = 1")
    code = "from distill.errors import VALUE\ndef test_{}(): assert VALUE == {}\n"
    (tmp_path / "test_a.py").write_text(code.format("one", 1) + code.format("two", 2))
    (tmp_path / "test_b.py").write_text("import nosuch")
    (tmp_path / "pytest.ini").write_text("[pytest]")
    assert signs.failed(tmp_path, ["test_a.py"]) == {"test_a.py::test_two"}
    collected = signs.run_pytest(tmp_path, "test_a.py", "--collect-only").collected
    assert collected == ["test_a.py::test_one", "test_a.py::test_two"]
    cannot_run = signs.failed(tmp_path, ["test_b.py"])
    assert "test_b.py" in cannot_run and any("the suite cannot run" in each for each in cannot_run)
