"""Recipes: options of `compact` in YAML. Three come with the package, others are files of the same kind."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from vitcompact.utils.plain_yaml import parse_yaml

NAMES = ("gentle", "balanced", "small")
"""Recipes that come with the package, the least cut first."""


@cache
def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe, with its comments."""
    return files("vitcompact.options").joinpath("shipped", f"{name}.yaml").read_text(encoding="utf-8")


@cache
def recipe(name: str) -> dict[str, float]:
    """The options of a shipped recipe by name, all of them numbers."""
    return {key: float(value) for key, value in parse_yaml(recipe_text(name)).items()}
