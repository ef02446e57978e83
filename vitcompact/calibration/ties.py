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


def in_steps(errors: Tensor) -> Tensor:
    """A table of errors in steps of a millionth of the largest."""
    step = float(errors.abs().max()) * 10.0**-DIGITS
    return errors if step == 0 else torch.round(errors / step) * step
