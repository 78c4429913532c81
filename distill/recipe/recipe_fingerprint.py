"""Compute the fingerprint of a recipe, which later versions of the schema do not change."""

import hashlib
import json
from pathlib import Path
from typing import Any

from distill.recipe import recipes
from distill.recipe.recipe_files import parsed
from distill.recipe.schema import Recipe

# Keys that older fingerprints do not include, by dotted table, with their defaults as JSON.
LATER_KEYS: dict[str, dict[str, Any]] = {
    "teacher": {"draw": "all", "mirror": False, "weights": [], "zero_gamma": True},
    "student": {"network": "resnet", "zero_gamma": True},
    "loss.kd": {"standardise": False},
    "loss.dkd": {"standardise": False},
    "loss.multi_temperature": {"standardise": False},
    "loss.fitnet": {"layout": "pointwise"},
    "optim": {"milestones": []},
    "train": {"drop_last": True, "keep_epochs": "auto"},
}


def recipe_fingerprint(recipe: Recipe) -> str:
    """Return the SHA-256 of a recipe's keys outside [about], hex.

    Absent keys do not change it, nor do LATER_KEYS while they have their defaults: earlier versions
    did not have these keys.
    """
    content = recipe.model_dump(mode="json", exclude={"about"}, exclude_none=True)
    return fingerprint_of_tables(content)


def fingerprint_as_written(path: Path) -> str:
    """Return the fingerprint of the keys that a run's recipe.toml contains, hex.

    It is what the version that wrote the file computed, even if later versions added keys. Raises
    RecipeError if the file cannot be read or is invalid.
    """
    recipes.read(path)
    content = {name: table for name, table in parsed(path, []).items() if name != "about"}
    return fingerprint_of_tables(content)


def fingerprint_of_tables(tables: dict[str, Any]) -> str:
    """Return the SHA-256 of a recipe's keys as canonical JSON, without LATER_KEYS at defaults."""
    hashed = {name: _without_later_keys(name, table) for name, table in tables.items()}
    canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _without_later_keys(name: str, table: dict[str, Any]) -> dict[str, Any]:
    """Return a table and its inner tables without LATER_KEYS at defaults; `name` is dotted."""
    later = LATER_KEYS.get(name, {}).items()
    return {
        key: _without_later_keys(f"{name}.{key}", value) if isinstance(value, dict) else value
        for key, value in table.items()
        if (key, value) not in later
    }
