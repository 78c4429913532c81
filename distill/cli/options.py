"""Options shared by several commands, with their help texts."""

import math
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from distill.errors import UserError


def complete_recipe(incomplete: str) -> list[str]:
    """Return the shipped recipes that complete the last name of `a+b+c`, for the shell."""
    from distill.recipe.recipe_files import shipped_paths

    before, plus, last = incomplete.rpartition("+")
    names = [path.stem for path in shipped_paths()]
    return [f"{before}{plus}{name}" for name in names if name.startswith(last)]


RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        help="A recipe's name, a path ending in .toml, or a+b+c.",
        autocompletion=complete_recipe,
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", "-s", help="key=value, overriding the recipe and options; repeatable."),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Images: synthetic, cifar10, cifar100 or a path.",
        show_default="the recipe's",
    ),
]
TeacherOption = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        "-t",
        help="A teacher's run folder; repeatable: several are averaged (see teacher.draw).",
        show_default="the best on held-out images",
    ),
]
SameDataOption = Annotated[str | None, typer.Option("--data", "-d", help="The same as SOURCE.")]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="The run folder.", show_default="runs/<recipe>-<time>"),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Resume from the newest checkpoint in --out, if any.")
]
TrackerOption = Annotated[
    list[str],
    typer.Option(
        "--tracker",
        help="Also log metrics to tensorboard, wandb …; repeatable.",
        show_default=False,
    ),
]
RulesOption = Annotated[
    str | None,
    typer.Option("--rules", help="Rules of a course: nyu2022 or nyu2025.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeysArgument = Annotated[
    list[str],
    typer.Argument(metavar="KEY…", help="First characters of keys listed by `cache info`."),
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


KEY_OF_OPTION = {  # options that other programs have, and the recipe keys that they set here
    "--epochs": "train.epochs",
    "--minutes": "train.minutes",
    "--lr": "optim.lr",
    "--learning-rate": "optim.lr",
    "--weight-decay": "optim.weight_decay",
    "--batch-size": "train.batch_size",
    "--seed": "train.seed",
}


class TrainingCommand(TyperCommand):
    """A command that names --set if an option was typed that is a key of recipes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command. Raises UserError if one of them is in KEY_OF_OPTION."""
        for word, after in pairwise([*args, ""]):
            option, equals, value = word.partition("=")
            if key := KEY_OF_OPTION.get(option):
                value = (value if equals else after) or "VALUE"
                raise UserError(
                    f"{option} is not an option of {ctx.info_name}.\nType --set {key}={value}"
                )
        return super().parse_args(ctx, args)


def _parse_budget(text: str | int) -> int:
    """Parse --max-params. Raises UserError for anything else than a whole number of at least 1."""
    digits = str(text)
    if not (digits.isascii() and digits.isdecimal() and int(digits)):
        raise UserError(
            f"--max-params {digits} is not a whole number of at least 1.\n"
            "Type all its digits, for example --max-params 5000000."
        )
    return int(digits)


class LabelStyle(StrEnum):
    """How `predict` writes a class: as its position in the list of class names, or as its name."""

    POSITIONS = "positions"
    NAMES = "names"


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
BudgetOption = Annotated[
    int,
    typer.Option(
        "--max-params",
        parser=_parse_budget,
        metavar="N",
        help="Parameter budget; networks must have fewer parameters.",
    ),
]
StagesOption = Annotated[
    str, typer.Option("--stages", metavar="A-B", help="Numbers of stages, from A to B.")
]
BlocksOption = Annotated[
    str, typer.Option("--blocks", metavar="A-B", help="Numbers of blocks in a stage, from A to B.")
]
AsymmetricOption = Annotated[
    bool, typer.Option("--asymmetric", help="Let stages have different numbers of blocks.")
]


def numbers(option: str, text: str, minimum: int = 1) -> range:
    """Parse a range such as `2-5`, or a single number such as `3`.

    Raises UserError, naming `option`, for any other text and for numbers below `minimum`.
    """
    first, _, last = text.partition("-")
    is_range = first.isdecimal() and (last or first).isdecimal()
    if not (is_range and minimum <= int(first) <= int(last or first)):
        raise UserError(
            f"{option} {text} is not a range of numbers of at least {minimum}; allowed: 3 or 2-5."
        )
    return range(int(first), int(last or first) + 1)


def normalisation_of(text: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Parse the option --normalize into mean and std of red, green and blue, for images in [0, 1].

    `none` is mean 0 and std 1. Returns None for `cifar10`, the default of the format project1.
    Raises UserError for any other text that is not R,G,B/R,G,B, finite and with positive std.
    """
    if text == "cifar10":
        return None
    if text == "none":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
        is_valid = len(mean) == len(std) == 3 and all(map(math.isfinite, mean + std))
    except ValueError:
        is_valid = False
    if not is_valid or min(std) <= 0:
        raise UserError(
            f"--normalize {text} is neither none, cifar10 nor R,G,B/R,G,B with a positive std.\n"
            "Type for example --normalize 0.5,0.5,0.5/0.25,0.25,0.25, for images in [0, 1]."
        )
    return mean, std
