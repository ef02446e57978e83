"""Ties of measured errors, decided by order and not by rounding.

Sums in float32 come out a little different with other batches or threads. Errors are compared by their leading digits,
so that what is equal but for rounding is equal, and the first of equals is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

DIGITS = 6
T = TypeVar("T")


def leading(error: float) -> float:
    """`error` by its leading digits."""
    return float(f"{error:.{DIGITS - 1}e}")


def least(choices: Iterable[T], error: Callable[[T], float]) -> T:
    """The first of the choices of least error."""
    return min(choices, key=lambda choice: leading(error(choice)))


def lower(error: float, than: float) -> bool:
    """Whether an error is lower by more than rounding."""
    return leading(error) < leading(than)


def leading_digits(errors: Tensor) -> Tensor:
    """A table of errors, float64, each by its leading digits: cheap ones stay as far apart as dear ones."""
    step = 10.0 ** (errors.abs().clamp_min(1e-300).log10().floor() - (DIGITS - 1))
    return torch.round(errors / step) * step
