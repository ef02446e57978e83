"""What a pickled checkpoint holds besides tensors, read as plain data: nothing of it is imported or run.

`torch.load(weights_only=True)` takes its own list of names and those it is told here, each with a stand-in of ours.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

Standin = Callable[..., Any]
_PLAIN_NUMBER = re.compile(r"[fiu][1248]|b1")


class Inert:
    """In the place of an object that is neither a tensor nor plain data."""

    def __new__(cls, *args: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: object) -> None:
        """Nothing is kept."""


class PlainDict:
    """In the place of a kind of dictionary: makes a plain one, which the pickle then fills.

    An object that turns out to be none leaves its attributes on an empty dictionary (`attributes_of`).
    """

    def __new__(cls, *args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]  # that is the point
        return OrderedDict()


def attributes_of(value: object) -> Mapping[str, Any]:
    """The attributes that a pickle gives to what `PlainDict` made."""
    return vars(value) if isinstance(value, OrderedDict) else {}


class NumpyType(Inert):
    """In the place of `numpy.dtype`: its code, such as `f8`."""

    def __init__(self, code: object = "", *args: object) -> None:
        self.code = str(code)


def numpy_scalar(kind: object, raw: object = b"") -> object:
    """The Python number that a pickled NumPy scalar stands for, or an `Inert`."""
    code = kind.code if isinstance(kind, NumpyType) else ""
    if _PLAIN_NUMBER.fullmatch(code) and isinstance(raw, bytes) and len(raw) == int(code[1]):
        return np.frombuffer(raw, dtype=np.dtype(code)).item()
    return Inert()


def _known() -> dict[str, Standin]:
    known: dict[str, Standin] = {"argparse.Namespace": argparse.Namespace}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[f"{module}.scalar"], known[f"{module}._reconstruct"] = numpy_scalar, Inert
    known["numpy.dtype"], known["numpy.ndarray"] = NumpyType, Inert
    for module in ("pathlib", "pathlib._local"):
        known |= {f"{module}.{name}": PurePosixPath for name in ("Path", "PurePath", "PosixPath", "PurePosixPath")}
        known |= {f"{module}.{name}": PureWindowsPath for name in ("WindowsPath", "PureWindowsPath")}
    known |= {f"collections.{name}": PlainDict for name in ("defaultdict", "UserDict", "ChainMap")}
    known |= {f"builtins.{name}": Inert for name in ("list", "dict", "tuple", "int", "float", "str", "bool", "object")}
    known |= {f"builtins.{name}": Inert for name in ("slice", "range", "type", "frozenset", "bytes")}
    data = ("datetime.datetime", "datetime.date", "datetime.timedelta", "datetime.timezone", "decimal.Decimal")
    return known | dict.fromkeys((*data, "uuid.UUID", "typing.Any", "collections.deque", "functools.partial"), Inert)


_KNOWN = _known()


def standins(names: Iterable[str], unknown: Standin = PlainDict) -> list[tuple[Standin, str]]:
    """Stand-ins for those names (`module.name`) in a pickle that may be read, for `torch.serialization.safe_globals`.

    May be read: plain data of Python and NumPy, and classes of packages that are neither (a training script's settings,
    its own kind of dictionary). Anything else of Python, NumPy and torch, and all functions, stay refused.

    Args:
        names: what the pickle refers to.
        unknown: the stand-in of classes of which nothing is known.
    """
    found: list[tuple[Standin, str]] = [(_KNOWN[name], name) for name in names if name in _KNOWN]
    return found + [(unknown, name) for name in names if name not in _KNOWN and _is_foreign_class(name)]


def _is_foreign_class(name: str) -> bool:
    package, last = name.partition(".")[0], name.rpartition(".")[2]
    if name.startswith(("numpy.dtypes.", "torch.nn.")):  # of pickled modules only the tensors are kept
        return last[:1].isupper()
    own = package in sys.stdlib_module_names or package in ("torch", "numpy", "__builtin__")
    return last[:1].isupper() and (not own or package == "__main__")
