"""Overrides and options: what they change, and which are refused."""

import re

import pytest

from distill.cli.options import KEY_OF_OPTION
from distill.cli.train_commands import resolve
from distill.recipe import recipes
from distill.recipe.validation import keys
from students.design import Design
from tests.cli.command_line import RunCli, assert_refused


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--recipe", "kd_cutmx"], "recipe 'kd_cutmx' is not in recipes/; did you mean kd_cutmix?"),
        (["--recipe", "/tmp"], "/tmp is not a recipe file: its path must end in .toml"),
        (["--recipe", "my.tml"], "my.tml is not a recipe file: its path must end in .toml"),
        (["--recipe", "kd+ema2"], "recipe 'ema2' is not in recipes/; did you mean ema?"),
        (["--recipe", "mine.toml"], "mine.toml does not exist"),
        (
            ["--set", "optim.lrr=0.3"],
            "optim.lrr = 0.3 (--set) is not a key; did you mean optim.lr?",
        ),
        (["--set", "optim.lr=fast"], 'optim.lr = "fast" (--set) is text; allowed: a number'),
        (["--set", "train.epochs=0"], "train.epochs = 0 (--set) is out of range"),
        (["--set", "optim.lr"], "--set optim.lr has no value; type key=value"),
        (["--set", "=3"], "--set =3 has no key: '' is not one"),
        (["--set", "student.blocks=[1,"], "is malformed: [1, is not a TOML value"),
        (["--recipe", "teacher_wrn"], "student is missing; distill needs a [student] table"),
    ],
)
def test_wrong_recipe_is_refused(run_cli: RunCli, arguments: list[str], found: str) -> None:
    assert_refused(run_cli("distill", *arguments), found, lines=2)


@pytest.mark.parametrize(
    ("command", "typed", "advice"),
    [
        ("distill", ["--epochs", "3"], "is not an option of distill.\nType --set train.epochs=3"),
        ("distill", ["--lr=0.1"], "Type --set optim.lr=0.1"),
        ("train-teacher", ["--seed", "1"], "--seed is not an option of train-teacher."),
        ("train-teacher", ["--batch-size"], "Type --set train.batch_size=VALUE"),
    ],
)
def test_option_named_like_a_key_is_explained(
    run_cli: RunCli, command: str, typed: list[str], advice: str
) -> None:
    assert_refused(run_cli(command, *typed), advice, lines=2)


def test_keys_of_explained_options_exist() -> None:
    assert set(KEY_OF_OPTION.values()) <= keys().keys()


def test_five_faults_are_five_lines(run_cli: RunCli) -> None:
    wrong = ["optim.lrr=1", "train.epochs=0", "mix.cutmix.prob=2", "loss.kd.weight=a", "colour=3"]
    result = run_cli("distill", *(word for each in wrong for word in ("--set", each)))
    keys = (each.split("=")[0] for each in wrong)
    assert_refused(result, "5 faults in kd_cutmix", *(f"\n  {key} = " for key in keys), lines=6)


def test_student_over_budget_is_refused_with_fitting_width(run_cli: RunCli) -> None:
    result = run_cli("distill", "--recipe", "kd", "--set", "student.width=128")
    ours, fits, too_wide = (
        Design.of(stages=3, blocks=[4, 4, 3], width=width).parameters for width in (128, 66, 67)
    )
    assert fits < 5_000_000 <= too_wide
    excess = f"{ours - 4_999_999:,} too many for fewer than 5,000,000"
    assert_refused(
        result,
        f"has {ours:,} parameters, {excess}",
        "type --set student.width=66, the widest that fits",
    )


def test_train_teacher_refuses_losses_with_a_teacher(run_cli: RunCli) -> None:
    assert_refused(
        run_cli("train-teacher", "--recipe", "tiny"), "type --set loss.kd=false", lines=2
    )


@pytest.mark.parametrize("arguments", [["params", "--recipe"], ["recipes"]])
def test_unknown_recipe_is_refused_by_every_command(run_cli: RunCli, arguments: list[str]) -> None:
    assert_refused(
        run_cli(*arguments, "kdd"), "recipe 'kdd' is not in recipes/; did you mean kd?", lines=2
    )


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["distil"], "distil"),
        (["distill", "--recip", "kd"], "--recip"),
        (["evaluate"], "RUN"),
    ],
)
def test_misspelt_command_or_option_is_refused(
    run_cli: RunCli, arguments: list[str], found: str
) -> None:
    result = run_cli(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert found in result.err
    assert "Traceback" not in result.err


def test_options_may_be_repeated(run_cli: RunCli) -> None:
    result = run_cli("recipes", "tiny", "--set", "optim.lr=0.3", "--set", "teacher.runs=['a', 'b']")
    assert re.search(r"^lr = 0.3 +# --set$", result.out, re.MULTILINE)
    assert re.search(r'^runs = \["a", "b"\] +# --set$', result.out, re.MULTILINE)
    both = resolve("tiny", None, [], ["a", "b"]).recipe
    assert both.teacher is not None
    assert both.teacher.runs == ("a", "b")


@pytest.mark.parametrize("path", ['a "b"', "it's", r"c:\new", "🐈/Müller", "a = [b] # c", "x\ty"])
def test_any_path_is_passed_unchanged(path: str) -> None:
    recipe = resolve("tiny", path, [], [path, f"{path}2"]).recipe
    assert recipe.data.source == path
    assert recipe.teacher is not None
    assert recipe.teacher.runs == (path, f"{path}2")
    assert recipes.loads(recipes.dumps(recipe), "a run") == recipe


def test_set_wins_over_the_options_of_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["data.source=b", "teacher={runs=['t']}", "optim.lr=0.3"]
    recipe = resolve("tiny", "a", overrides, ["s"]).recipe
    assert recipe.data.source == "b"
    assert recipe.teacher is not None and recipe.teacher.runs == ("t",)
    assert capsys.readouterr().err.splitlines() == [
        "note: --set data.source=b overrides --data, which is not used",
        "note: --set teacher={runs=['t']} overrides --teacher, which is not used",
    ]
    assert resolve("tiny", "a", ["optim.lr=0.3"], None).recipe.data.source == "a"
    assert capsys.readouterr().err == ""
