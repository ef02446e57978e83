"""The graph of a `.pt2` archive, object by object: torch makes Python code of its names and calls what it names.

`torch.export.load` writes inputs, attributes and arguments by name into source code and compiles it, so a name may be
nothing but a name; operators are looked up below `torch`, so they may be aten's only. `wrap_with_autocast`, which runs
a graph inside the archive under `torch.autocast` (timm's LiteMLA), is the one operator that takes a graph: it is
checked as all else is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file|_?save|_?load)\w+\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge)",
    re.ASCII,
)
_AUTOCAST = "torch.ops.higher_order.wrap_with_autocast"
_DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps")
_SIZE = re.compile(
    r"(?:[su]\d++|Symbol\('[su]\d++'(?:, (?:positive|nonnegative|integer)=True)*+\)"
    r"|Integer|Add|Mul|Pow|Max|Min|FloorDiv|Mod|PythonMod|CleanDiv|CeilDiv|Eq|Ne|\d++|[-+*/(), <>=])*+"
)
_NAME = re.compile(r"[\w.]*+", re.ASCII)
_NUMBERS = ("Infinity", "-Infinity", "NaN")
"""Numbers that JSON has no digits for."""
_FREE_TEXT = ("metadata", "as_string", "as_strings", "torch_version")
"""Of what is never put into code, or only as the literal that it is."""
_TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_TREE_CONTEXTS = (None, "null", "[]")


def objections(data: Any, graphs: bool = False) -> Iterator[str]:
    """Why a part of the graph or of a list of tensors is not read.

    Args:
        data: decoded JSON.
        graphs: whether it may hold a graph to be called.
    """
    if isinstance(data, str) and data not in _NUMBERS and not _NAME.fullmatch(data):
        yield f"{data[:80]!r} is no name"
    if isinstance(data, list):
        for value in data:
            yield from objections(value, graphs)
    if not isinstance(data, dict):
        return
    if _is_operator(data):
        graphs = _is_autocast(data)
        if not graphs and not (isinstance(data["target"], str) and _TARGET.fullmatch(data["target"])):
            yield f"operator {str(data['target'])[:80]!r} is not one of a vision model"
    for key, value in data.items():
        yield from _of_entry(key, value, graphs)


def _of_entry(key: str, value: Any, graphs: bool) -> Iterator[str]:
    """Why an entry of an object is not read."""
    if not _NAME.fullmatch(key):
        yield f"{key[:80]!r} is no name"
    elif key == "use_pickle" and value:
        yield "it holds pickled objects"
    elif key == "guards_code" and value:
        yield "it holds code"
    elif key == "as_operator" and value:
        yield "it hands on operators"
    elif key == "as_graph" and not graphs:
        yield "it hands on graphs"
    elif key == "expr_str" and not (isinstance(value, str) and _SIZE.fullmatch(value)):
        yield f"{str(value)[:80]!r} is no size"
    elif key in ("in_spec", "out_spec") and isinstance(value, str):
        if not _is_plain(json.loads(value)):
            yield "its inputs or outputs are no plain tensors"
    elif key in _FREE_TEXT:
        if not _is_text(value):
            yield f"its {key} is no text"
    elif key != "expr_str":
        yield from objections(value, graphs)


def _is_operator(node: dict[str, Any]) -> bool:
    """Whether an object is a node of the graph; entries of the signature have targets too, which are names."""
    return {"target", "inputs", "outputs"} <= node.keys()


def _is_autocast(node: dict[str, Any]) -> bool:
    """Whether a node runs a graph of the archive on tensors, under autocast of a known kind of device."""
    if node["target"] != _AUTOCAST:
        return False
    try:
        given = [next(iter(value["arg"].items())) for value in node["inputs"]]
        kinds = [kind for kind, _ in given]
        named = any(value.get("name") for value in node["inputs"])
        return (
            not named
            and given[0] in [("as_string", device) for device in _DEVICE_TYPES]
            and kinds[1] in ("as_none", "as_scalar_type")
            and kinds[2] == "as_bool"
            and kinds[3] in ("as_none", "as_bool")
            and kinds[4] == "as_graph"
            and all(kind == "as_tensor" or kind.startswith("as_sym_int") for kind in kinds[5:])
        )
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError):
        return False


def _is_text(value: Any) -> bool:
    """Whether there is nothing but strings in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _is_plain(spec: Any) -> bool:
    """Whether inputs or outputs are nested in nothing but tuples, lists and dictionaries without keys."""
    if isinstance(spec, list):
        return all(map(_is_plain, spec))
    if not isinstance(spec, dict):
        return not isinstance(spec, str)
    known = spec.get("type") in _TREE_TYPES and spec.get("context") in _TREE_CONTEXTS
    rest = (value for key, value in spec.items() if key not in ("type", "context"))
    return known and all(map(_is_plain, rest))
