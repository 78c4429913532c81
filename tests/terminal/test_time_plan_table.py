"""A plan on 80 columns."""

from io import StringIO
from typing import Any

from rich.console import Console
from rich.text import Text

from distill.terminal.time_plan_table import plan_blocks


def part(minutes: float, recipe: str = "a", *overrides: str) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "overrides": list(overrides),
        "network": "ResNet [1, 1, 1] 96-256-320 pooled",
        "parameters": 4_175_490,
        "minutes": minutes,
        "is_timed": True,
    }


def row(name: str, minutes: float, **more: Any) -> dict[str, Any]:
    return {
        "recipe": name,
        "role": "student",
        "accuracy": None,
        "seeds": None,
        "fits": True,
        "minutes": minutes,
        "low": 0.85 * minutes,
        "high": 1.15 * minutes,
        "teacher": None,
        "training": part(minutes),
        "commands": [f"python cli.py distill --recipe {name}"],
        **more,
    }


def planned(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    fitting = [each["recipe"] for each in rows if each["fits"]]
    return {
        "minutes": 120.0,
        "rules": None,
        "data": None,
        "device": "cpu, 2 threads",
        "processor_share": 0.97,
        "best": fitting[0] if fitting else None,
        "quickest": min(rows, key=lambda r: r["minutes"])["recipe"] if rows else None,
        "recipes": list(rows),
        "against_the_rules": [],
        "broken_rules": {},
        "published": "cifar10",
        "fills_minutes": None,
        "measured_s": 41.2,
        **more,
    }


def shown(plan: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=80, _environ={})
    for block in plan_blocks(plan):
        console.print(block, highlight=False, soft_wrap=isinstance(block, Text))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


LONG = "python cli.py train-teacher --recipe fast_teacher --set train.precision=bf16 --out runs/a-b"
DISTILLED = row(
    "fast_kd", 90.0, accuracy=93.4, seeds=3, teacher=part(30.0), training=part(60.0),
    commands=[LONG, "python cli.py distill --recipe fast_kd --teacher runs/a-b"],
)  # fmt: skip


def test_row_shows_accuracy_and_times() -> None:
    text = shown(planned(DISTILLED, row("new", 5.0)))
    assert "2 recipes fit into 120 minutes on cpu, 2 threads." in text
    (line,) = [line for line in text.splitlines() if line.startswith("fast_kd ")]
    assert [" ".join(cell.split()) for cell in line.split("  ") if cell.strip()][-4:] == [
        "93.40 %", "30 min", "60 min", "1.5 h",
    ]  # fmt: skip
    assert "3 seeds" in text and "(1.3 to 1.7)" in text and "4,175,490" in text
    (new,) = [line for line in text.splitlines() if line.startswith("new ")]
    assert "not measured" in new and "%" not in new


def test_accuracies_on_other_images_are_named() -> None:
    rows = (DISTILLED, row("slow", 200.0, fits=False))
    assert "CIFAR-10 " not in shown(planned(*rows))
    assert shown(planned(*rows, published="cifar100", data="cifar100")).count("CIFAR-10 ") == 2


def test_commands_are_whole_lines() -> None:
    text = shown(planned(DISTILLED, row("kd_cutmix+two_cores", 5.0)))
    assert f"  {LONG}\n" in text
    assert "For fast_kd, type:" in text
    assert "…" not in text
    assert "kd_cutmix+two_cores" in text
    table = [line for line in text.splitlines() if " min" in line or "ResNet" in line]
    assert table and max(map(len, table)) <= 80


def test_recipes_that_do_not_fit_show_time() -> None:
    others = [row(name, 5_000.0, fits=False) for name in ("at", "crd", "kd")]
    text = shown(planned(DISTILLED, *others))
    assert "These do not fit:" in text
    (line,) = [line for line in text.splitlines() if line.startswith("at, crd, kd")]
    assert "not measured" in line and "83 h" in line and "(71 to 96)" in text


def test_recipes_far_beyond_the_minutes_are_named() -> None:
    slow = [row(f"slow_{i}", 60.0 * 24 * i, fits=False) for i in range(30, 5, -1)]
    text = shown(planned(row("a", 60.0), row("b", 180.0, fits=False), *slow))
    assert "These do not fit:" in text
    table, _, names = text.partition("These take 6.0 days and more on this device:\n")
    assert "b " in table and "slow" not in table
    assert " ".join(names.partition("\n\n")[0].split()).split(", ") == [
        f"slow_{i}" for i in range(6, 31)
    ]
    assert max(map(len, names.partition("\n\n")[0].splitlines())) <= 80


def test_long_recipe_names_are_whole() -> None:
    names = ["kd_cutmix+two_cores", "multi_temperature", "nst", "function_matching", "reviewkd"]
    wide = {"accuracy": 94.4, "seeds": 1, "low": 4_100.0, "high": 7_200.0}
    text = shown(planned(*(row(name, 5_500.0, fits=False, **wide) for name in names)))
    assert set(names) <= set(text.replace(",", " ").split())
    header = next(line for line in text.splitlines() if line.startswith("recipe"))
    assert header.split()[-1] == "together" and "(2.8 to 5.0)" in text
    assert (
        max(map(len, text.partition("These do not fit:")[2].split("Times are")[0].split("\n")))
        <= 80
    )


def test_nothing_fits() -> None:
    text = shown(planned(row("a", 300.0, fits=False), row("b", 500.0, fits=False)))
    assert "Nothing fits into 120 minutes on cpu, 2 threads." in text
    quickest = "The quickest is a: about 5.0 h (4.2 to 5.8), which fits into --minutes 345."
    assert quickest in text
    assert "type:" not in text


def test_a_command_that_uses_the_minutes() -> None:
    command = "python cli.py distill --recipe a --set train.minutes=54"
    proposed = {"recipe": "a", "minutes": 54.0, "command": command}
    for fits in (True, False):
        text = shown(planned(row("a", 10.0, fits=fits), minutes=60.0, fills_minutes=proposed))
        assert (
            "To use the 60 minutes, 54 of them for training, type:\n"
            f"  {command}\nThe accuracy after this time was not measured.\n"
        ) in text


def test_precision_of_the_times_is_named() -> None:
    bf16 = part(60.0, "fast_kd", "train.precision=bf16")
    text = shown(planned(row("fast_kd", 60.0, training=bf16), row("b", 5.0)))
    assert (
        "Timed in bf16, as in their commands: fast_kd. "
        "Other times are for the default precision, train.precision=auto.\n"
    ) in text
    plain = shown(planned(row("b", 5.0)))
    assert "All times are for the default precision, train.precision=auto.\n" in plain
    untimed = shown(planned(row("fast_kd", 60.0, training={**bf16, "is_timed": False})))
    assert "All times are for the default precision" in untimed


def test_rules_that_no_recipe_keeps() -> None:
    broken = {"a": ["no 7"], "b": ["no 7", "no 8"], "c": ["no 7"]}
    text = shown(planned(rules="nyu2025", against_the_rules=list(broken), broken_rules=broken))
    assert "No recipe follows the rules nyu2025." in text
    assert (
        "With --rules nyu2025, 3 recipes left out:\n  a, b, c: no 7\n"
        "Every clause: python cli.py design --rules nyu2025 --check NAME\n"
    ) in text


def test_a_busy_machine_and_other_images_are_mentioned() -> None:
    text = shown(planned(DISTILLED, processor_share=0.25, data="cifar100", published="cifar100"))
    assert (
        "the steps had 25 % of the processor. "
        "Without them, times could fall to 25 % of these at best."
    ) in text
    assert "Accuracies on cifar100 differ: these are not CIFAR-10's images." in text
    assert "Accuracies on my/folder differ" in shown(
        planned(DISTILLED, data="my/folder", published=None)
    )
    quiet = shown(planned(DISTILLED, processor_share=None, data="my/cifar10"))
    assert "processor" not in quiet and "differ" not in quiet


def test_a_teacher_alone_is_in_the_teachers_column() -> None:
    text = shown(planned(row("teacher_wrn", 50.0, role="teacher")))
    (line,) = [line for line in text.splitlines() if line.startswith("teacher_wrn ")]
    cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
    assert cells[-3:] == ["50 min", "–", "50 min"]
