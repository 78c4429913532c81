"""Terminal table of a plan: which recipes fit, and the commands to type."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from textwrap import fill
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from distill.format import UNKNOWN, as_typed, counted, grouped, rounded_time, time_with_range
from distill.terminal.table_style import blank_table

Row = Mapping[str, Any]
BF16 = "train.precision=bf16"
FAR = 50  # recipes that take this multiple of the budget are listed by name only
BUSY = 0.7  # if the timed steps had a smaller fraction of the processor, a note mentions it


def plan_blocks(planned: Mapping[str, Any]) -> list[RenderableType]:
    """Return the parts of the output; `planned` is the result of `time_plan.plan`.

    The caller should print each Text without wrapping, so that the commands in it can be copied.
    """
    fitting = [row for row in planned["recipes"] if row["fits"]]
    others = [row for row in planned["recipes"] if not row["fits"]]
    far_minutes = FAR * planned["minutes"]
    near = [row for row in others if row["minutes"] < far_minutes]
    far = [row for row in others if row["minutes"] >= far_minutes]
    accuracy = "accuracy" if planned["published"] == "cifar10" else "accuracy on\nCIFAR-10"
    blocks: list[RenderableType] = [Text(line) for line in _head(planned, len(fitting))]
    if fitting:
        blocks += [Text(), _recipes_that_fit(fitting, accuracy), *_commands(fitting[0])]
    if planned["fills_minutes"] is not None:
        blocks += [Text(), *_command_that_fills(planned["fills_minutes"], planned["minutes"])]
    if near:
        blocks += [Text(), Text("These do not fit:", "bold"), _slower_recipes(near, accuracy)]
    if far:
        blocks += [Text(), *_much_slower_recipes(far)]
    return [*blocks, Text(), *(Text(note, "dim") for note in _notes(planned))]


def _head(planned: Mapping[str, Any], n_fitting: int) -> list[str]:
    unit = "minute" if planned["minutes"] == 1 else "minutes"
    budget = f"{planned['minutes']:g} {unit} on {planned['device']}"
    if n_fitting:
        return [f"{counted(n_fitting, 'recipe fits', 'recipes fit')} into {budget}."]
    if not planned["recipes"]:
        return [f"No recipe follows the rules {planned['rules']}."]
    quickest = next(r for r in planned["recipes"] if r["recipe"] == planned["quickest"])
    return [
        f"Nothing fits into {budget}.",
        f"The quickest is {quickest['recipe']}: about {_time_with_range(quickest)}, "
        f"which fits into --minutes {math.ceil(quickest['high'])}.",
    ]


def _recipes_that_fit(rows: Sequence[Row], accuracy: str) -> Table:
    table = blank_table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("network, parameters", overflow="fold")
    for heading in (accuracy, "teacher", "student", "together"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        teacher, own = row["teacher"], row["training"]
        is_teacher = row["role"] == "teacher"
        table.add_row(
            Text(row["recipe"], "bold"),
            f"{own['network']}, {grouped(own['parameters'])}",
            _accuracy(row).replace(", ", "\n"),
            _time_text(own if is_teacher else teacher),
            _time_text(None if is_teacher else own),
            _time_with_range(row).replace(" (", "\n("),
        )
    return table


def _commands(best: Row) -> list[Text]:
    heading = Text(f"For {best['recipe']}, type:", "bold")
    return [Text(), heading, *(Text(f"  {as_typed(command)}") for command in best["commands"])]


def _command_that_fills(proposed: Mapping[str, Any], minutes: float) -> list[Text]:
    """Return the lines with a command whose training fills the budget."""
    heading = f"To use the {minutes:g} minutes, {proposed['minutes']:g} of them for training, type:"
    return [
        Text(heading, "bold"),
        Text(f"  {as_typed(proposed['command'])}"),
        Text("The accuracy after this time was not measured.", "dim"),
    ]


def _slower_recipes(rows: Sequence[Row], accuracy: str) -> Table:
    """Show the recipes that do not fit; those with the same network and time share a row."""
    table = blank_table()
    table.add_column("recipe", no_wrap=True)
    width = max(20, *(1 + len(row["recipe"]) for row in rows))  # the longest name and a comma
    table.add_column("network", overflow="fold")
    for heading in (accuracy, "together"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, group in groupby(rows, key=_grouping_key):
        alike = list(group)
        table.add_row(
            fill(", ".join(row["recipe"] for row in alike), width, break_on_hyphens=False),
            alike[0]["training"]["network"],
            _accuracy(alike[0]).replace(", ", "\n"),
            _time_with_range(alike[0]).replace(" (", "\n("),
        )
    return table


def _much_slower_recipes(rows: Sequence[Row]) -> list[Text]:
    """Return lines that name the recipes which take at least FAR times the budget."""
    names = ", ".join(row["recipe"] for row in sorted(rows, key=lambda row: row["minutes"]))
    quickest_s = 60 * min(row["minutes"] for row in rows)
    heading = f"These take {rounded_time(quickest_s)} and more on this device:"
    return [Text(heading, "bold"), Text(fill(names, 78, break_on_hyphens=False))]


def _grouping_key(row: Row) -> tuple[object, ...]:
    return row["training"]["network"], row["accuracy"], _time_with_range(row)


def _accuracy(row: Row) -> str:
    """Format a recipe's accuracy on CIFAR-10's test split, with the number of seeds if known."""
    if row["accuracy"] is None:
        return "not measured"
    seeds = "" if row["seeds"] is None else f", {counted(row['seeds'], 'seed')}"
    return f"{row['accuracy']:.2f} %{seeds}"


def _time_with_range(row: Row) -> str:
    """Format a time and its range: `48 min (41 to 55)`."""
    return time_with_range(60 * row["minutes"], 60 * row["low"], 60 * row["high"])


def _time_text(part: Row | None) -> str:
    """Format a time without its range: `48 min`."""
    return UNKNOWN if part is None else rounded_time(60 * part["minutes"])


def _notes(planned: Mapping[str, Any]) -> list[str]:
    """Return notes on how the times were obtained."""
    notes = [
        "Times are estimates with ranges in brackets, which are wide if the recipe's own steps",
        f"were not timed. Measured in {planned['measured_s']:.0f} s.",
        _precision_note(planned["recipes"]),
        "Accuracies: CIFAR-10's test split, reached by the command in the recipe's [about].",
    ]
    if planned["published"] != "cifar10":
        notes.append(f"Accuracies on {planned['data']} differ: these are not CIFAR-10's images.")
    share = planned["processor_share"]
    if share is not None and share < BUSY:
        notes.append(
            f"Other programs are running: the steps had {100 * share:.0f} % of the processor. "
            f"Without them, times could fall to {100 * share:.0f} % of these at best."
        )
    if planned["against_the_rules"]:
        notes += _left_out(planned["broken_rules"], planned["rules"])
    return notes


def _precision_note(rows: Sequence[Row]) -> str:
    """Return which of the timed recipes were timed in bf16."""
    parts = [
        part
        for row in rows
        for part in (row["teacher"], row["training"])
        if part is not None and part["is_timed"] and BF16 in part["overrides"]
    ]
    in_bf16 = ", ".join(dict.fromkeys(part["recipe"] for part in parts))
    default = "for the default precision, train.precision=auto."
    if not in_bf16:
        return f"All times are {default}"
    return f"Timed in bf16, as in their commands: {in_bf16}. Other times are {default}"


def _left_out(broken: Mapping[str, Sequence[str]], rules: str) -> Iterator[str]:
    """Yield which recipes are left out because of the rules, and the first reason for each."""
    yield f"With --rules {rules}, {counted(len(broken), 'recipe')} left out:"
    together: dict[str, list[str]] = {}
    for name, clauses in broken.items():
        together.setdefault(clauses[0], []).append(name)
    for clause, names in together.items():
        yield f"  {', '.join(names)}: {clause}"
    if any(len(clauses) > 1 for clauses in broken.values()):
        yield f"Every clause: python cli.py design --rules {rules} --check NAME"
