"""Ties of measured errors, and signs of basis vectors, decided by order and not by rounding.

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


def signs(columns: Tensor) -> Tensor:
    """One or minus one `(..., k)` for each column of bases `(..., n, k)`, times which its largest number is positive.

    Eigenvectors and singular vectors are given up to a sign, and which one comes out of LAPACK hangs on rounding. Of
    numbers that are as large but for rounding the first one counts.
    """
    size = columns.abs()
    largest = size >= size.amax(dim=-2, keepdim=True) * (1 - 10.0 ** (1 - DIGITS))
    first = largest.to(torch.uint8).argmax(dim=-2, keepdim=True)
    return 1.0 - 2.0 * (columns.gather(-2, first).squeeze(-2) < 0).to(columns.dtype)
