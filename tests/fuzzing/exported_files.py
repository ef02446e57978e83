"""Exported files (`.onnx`, `.xml`, `.pt2`) that were changed on their way."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from .mutate import Rng, changed, damaged, hostile_document, of_the_system, wrong
from .pickle_files import MARK, call


def hostile_exported(path: Path, honest: Path, rng: Rng) -> None:
    """Write a variant of the exported file `honest` to `path`, which has its suffix; and of what lies beside it."""
    beside = honest.with_suffix(".bin")
    if honest.suffix == ".xml":
        weights = beside.read_bytes()
        path.with_suffix(".bin").write_bytes(weights if rng.random() < 0.8 else damaged(weights, rng))
    if of_the_system(path, rng):
        return
    variant = {".onnx": _onnx, ".xml": _xml, ".pt2": _pt2}[honest.suffix]
    path.write_bytes(damaged(honest.read_bytes(), rng) if rng.random() < 0.2 else variant(honest, rng))


CODE_NAMES = (
    f"training') and open('{MARK}', 'w') or getattr(self, 'training",
    f'training") and open("{MARK}", "w") or getattr(self, "training',
    f"x: open('{MARK}', 'w')",
    f"x=open('{MARK}', 'w')",
    f"x); open('{MARK}', 'w'); (x",
    f"x\n    open('{MARK}', 'w')\n    x",
)
"""Names that are code where they are written into a function's source."""


def _named_by_code(members: list[tuple[str, bytes]], rng: Rng) -> list[tuple[str, bytes]]:
    """An archive in which one name is code, wherever its documents have it."""
    graph = next(content for name, content in members if name.endswith("/model.json"))
    old, new = rng.choice(re.findall(rb'"[a-z][\w.]+"', graph)), json.dumps(rng.choice(CODE_NAMES)).encode()
    return [(name, content.replace(old, new) if name.endswith(".json") else content) for name, content in members]


def _description(text: str, rng: Rng) -> str:
    return hostile_document(json.loads(text), rng).decode("utf-8", "replace")


def _onnx(honest: Path, rng: Rng) -> bytes:
    import onnx

    model: Any = onnx.load(honest)
    graph = model.graph
    kind = rng.randrange(9)
    if kind < 3:
        for entry in model.metadata_props:
            if entry.key == "vitcompact":
                entry.value = _description(entry.value, rng)
    elif kind == 3:
        weight = rng.choice(graph.initializer)
        weight.dims[:] = rng.choice(([2**40], [0], [-1, 2], [1] * 70, [2**31, 2**31]))
    elif kind == 4:
        weight = rng.choice(graph.initializer)
        weight.ClearField("raw_data")
        weight.data_location = 1
        for key, value in (("location", rng.choice(("/etc/passwd", "../x", "/dev/zero"))), ("length", str(2**40))):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    elif kind == 5:
        node = rng.choice(graph.node)
        node.op_type = rng.choice(("Loop", "If", "Scan", "Foo", "ConstantOfShape", "Expand", ""))
        node.domain = rng.choice(("", "com.microsoft", "ai.onnx.ml", "x"))
    elif kind == 6:
        node = rng.choice(graph.node)
        node.input[:] = rng.choice((list(node.output), ["nowhere"], [], list(node.input) * 200))
    elif kind == 7:
        for value in (*graph.input, *graph.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_value = rng.choice((1, 2**31, -1, 0, 7))
    else:
        model.opset_import[0].version = rng.choice((0, 1, 99, 2**40))
    content: bytes = model.SerializeToString()
    return content


def _xml(honest: Path, rng: Rng) -> bytes:
    text = honest.read_text(encoding="utf-8")
    kind = rng.randrange(6)
    if kind == 0:
        entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "x" * 10}">' for i in range(9))
        return text.replace("<net ", f"<!DOCTYPE net [{entities}]><net ", 1).replace("Parameter", "&a8;", 1).encode()
    if kind == 1:
        outside = f'<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/passwd"><!ENTITY % y SYSTEM "{MARK}">]><net '
        return text.replace("<net ", outside, 1).encode()
    spots = list(re.finditer(r'"[^"]*"', text))
    for spot in sorted(rng.sample(spots, rng.choice((1, 1, 3))), key=lambda found: -found.start()):
        value = rng.choice(
            (str(2**62), "-1", "0", "", "x" * 9_000, "f64", "Parameter", "&lt;", "1,2,3", str(wrong(rng))[:200])
        )
        value = value.replace('"', "").replace("<", "").encode("utf-8", "replace").decode()
        text = f'{text[: spot.start()]}"{value}"{text[spot.end() :]}'
    return text.encode()


def _pt2(honest: Path, rng: Rng) -> bytes:
    with zipfile.ZipFile(honest) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    kind = rng.randrange(7)
    at = rng.randrange(len(members))
    if kind < 3:
        texts = [i for i, (name, _) in enumerate(members) if name.endswith(".json")]
        at = rng.choice(texts)
        members[at] = members[at][0], json.dumps(changed(json.loads(members[at][1]), rng)).encode("utf-8", "replace")
    elif kind == 3:
        members[at] = members[at][0], damaged(members[at][1], rng)
    elif kind == 4:
        root = members[0][0].partition("/")[0]
        name = rng.choice(
            ("data/sample_inputs/model.pt", "data/aotinductor/model/x.so", "code.py", "../x", "data/weights/x")
        )
        members.append((f"{root}/{name}", call(rng) + b"."))
    elif kind == 5:
        members = _named_by_code(members, rng)
    else:
        del members[at]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as changed_archive:
        for name, content in members:
            changed_archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()
