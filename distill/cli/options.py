"""Options shared by several commands, with their help texts."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distill.errors import UserError

RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="A name, a path ending in .toml, or a+b+c.")
]
SetOption = Annotated[
    list[str], typer.Option("--set", "-s", help="key=value, over everything else; repeatable.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="synthetic, cifar10, cifar100 or a path.",
        show_default="the recipe's",
    ),
]
TeacherOption = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        "-t",
        help="A teacher's run folder; repeatable: their mean, or teacher.draw.",
        show_default="the best on held-out images",
    ),
]
SameDataOption = Annotated[
    str | None, typer.Option("--data", "-d", help="The same, as other verbs have it.")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="The run folder itself.", show_default="runs/<recipe>-<time>"),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint of --out, if any.")
]
TrackerOption = Annotated[
    list[str],
    typer.Option(
        "--tracker",
        help="tensorboard, wandb …: metrics go there too; repeatable.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeysArgument = Annotated[
    list[str], typer.Argument(metavar="KEY…", help="Beginnings of keys, as `cache info` says them.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="UNDERSTUDY_STORAGE",
        help="A database for many machines: postgresql://USER:PASSWORD@HOST/NAME.",
        show_default="SQLite in --out",
        show_envvar=True,
    ),
]


class LabelStyle(StrEnum):
    """What `predict` writes of a class."""

    POSITIONS = "positions"
    NAMES = "names"


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
BudgetOption = Annotated[
    int, typer.Option("--max-params", min=1, help="The budget; fewer than that many.")
]
StagesOption = Annotated[str, typer.Option("--stages", metavar="A-B", help="From A to B.")]
BlocksOption = Annotated[str, typer.Option("--blocks", metavar="A-B", help="In a stage.")]
AsymmetricOption = Annotated[
    bool, typer.Option("--asymmetric", help="Every choice of blocks, stage by stage.")
]


def numbers(option: str, text: str, least: int = 1) -> range:
    """`2-5` or `3` as the numbers that it means. Raises UserError for anything else."""
    first, _, last = text.partition("-")
    is_range = first.isdecimal() and (last or first).isdecimal()
    if not (is_range and least <= int(first) <= int(last or first)):
        raise UserError(
            f"{option} {text} is not a range of numbers from {least} on; allowed: 3 or 2-5."
        )
    return range(int(first), int(last or first) + 1)
