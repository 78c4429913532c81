"""Load recipes with random parts, keys, values and damage; each must be resolved or refused."""

import random
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.soak.outcome import Outcome
from distill.errors import UserError
from distill.recipe import recipes
from distill.recipe.recipe_files import shipped_paths
from distill.recipe.validation import keys


def recipe_texts(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Load `tries` recipes: random compositions a+b with random overrides, and damaged recipes."""
    chance = random.Random(seed)
    outcome = Outcome(
        "a recipe of random parts, keys, values and damage",
        "the resolved recipe, or all its errors at once",
    )
    texts = [path.read_text() for path in shipped_paths()]
    names = [path.stem for path in shipped_paths()]
    for _ in range(tries):
        overrides = [_override(chance) for _ in range(chance.randrange(4))]
        if chance.random() < 0.5:
            parts = [chance.choice([*names, _word(chance)]) for _ in range(chance.randrange(1, 4))]
            fault = _fault(partial(recipes.load, "+".join(parts), overrides))
        else:
            damaged = _damaged(chance.choice(texts), chance)
            fault = _fault(partial(recipes.loads, damaged, "fuzzed.toml"))
        outcome.count(not fault, fault)
    return [outcome]


def _fault(load: Callable[[], object]) -> str:
    """Load a recipe by calling `load`; return what is wrong with the result, or "".

    It must load, or be refused by a UserError with a message.
    """
    try:
        load()
    except UserError as refusal:
        return "" if str(refusal).strip() else "no message"
    except Exception as fault:
        return f"{type(fault).__name__}: {fault}"
    return ""


def _override(chance: random.Random) -> str:
    key = chance.choice([*sorted(keys()), _word(chance), f"{_word(chance)}.{_word(chance)}"])
    return f"{key}={_value(chance)}" if chance.random() < 0.95 else _word(chance)


def _value(chance: random.Random) -> str:
    plain = [
        "0", "-1", "1", "1e400", "-0.0", "nan", "inf", "true", "false", '""', "[]", "{}", "[[[]]]",
        "1979-05-27", "0x10", "9" * 30, '"cutmix"', "[1, 2, 3]", "{a = 1}", "=", "[1,", '"', "\0",
        "é",
        "[" * 2000, "{a=" * 500, "1" + "0" * 5000,
    ]  # fmt: skip
    return chance.choice([*plain, _word(chance), str(chance.uniform(-10, 10))])


def _word(chance: random.Random) -> str:
    return "".join(chance.choices(string.printable, k=chance.randrange(1, 12)))


def _damaged(text: str, chance: random.Random) -> str:
    """Return the text with some characters changed, removed or doubled; it may also be truncated,
    and its lines shuffled.
    """
    letters = list(text)
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(letters))
        letters[at] = chance.choice(["", letters[at] * 2, chance.choice(string.printable), "\0"])
    lines = "".join(letters)[: chance.randrange(1, 2 * len(letters))].splitlines()
    if chance.random() < 0.3:
        chance.shuffle(lines)
    return "\n".join(lines)
