"""safetensors files whose header, offsets or numbers are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .mutate import Rng, damaged, of_the_system, wrong

DTYPES = (
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F4", "F6_E2M3", "F6_E3M2", "I16", "U16"),
    *("F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64", "", "f32", "X9"),
)


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file, perhaps with another length of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length % (1 << 64)).to_bytes(8, "little") + text + data


def hostile_safetensors(path: Path, content: bytes, rng: Rng) -> None:
    """Write a variant of the honest file `content`."""
    if not of_the_system(path, rng):
        path.write_bytes(_variant(content, rng))


def _variant(content: bytes, rng: Rng) -> bytes:
    kind = rng.randrange(20)
    if kind < 3:
        return damaged(content, rng)
    header, data = split(content)
    if kind == 3:
        return join(header, data, rng.choice((0, 1, 2**62, 2**64 - 1, 100_000_001, len(content), -1)))
    if kind == 4:
        return _many(rng, header, data)
    if kind == 5:
        return _numbers(content, rng)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice(names)
        if name in header and isinstance(header[name], dict):
            _entry(header, name, data, rng)
    return join(header, data)


def _entry(header: dict[str, Any], name: str, data: bytes, rng: Rng) -> None:
    """Change one tensor's entry."""
    entry, kind = header[name], rng.randrange(11)
    if not all(isinstance(entry.get(part), list) for part in ("shape", "data_offsets")):
        return  # changed before
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:  # another kind of numbers, and as many of them as there are bytes
        entry["dtype"], width = rng.choice(
            (("F8_E4M3", 1), ("I8", 1), ("F16", 2), ("BF16", 2), ("BOOL", 1), ("C64", 8))
        )
        entry["shape"] = [(entry["data_offsets"][1] - entry["data_offsets"][0]) // width]
    elif kind == 2:
        entry["shape"] = rng.choice(([1] * 65 + entry["shape"], [0], [], entry["shape"][::-1], [2**62, 4], [-1]))
    elif kind == 3:
        start, end = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(
            ([0, end - start], [end, start], [start, 2**63], [start + 1, end + 1], [0, 0])
        )
    elif kind == 4:
        entry[rng.choice(("dtype", "shape", "data_offsets", "other"))] = wrong(rng)
    elif kind == 5:
        header[rng.choice(("a\0b", "\x1b[31m", "x" * 5_000, f"module.{name}", f"{name}.x", "", "head.weight"))] = entry
        del header[name]
    elif kind == 6:
        del header[name]
    elif kind == 7:
        header[f"extra.{rng.randrange(9)}.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2}
    elif kind == 8:
        header["__metadata__"] = rng.choice(({"format": "pt", "x": "\x1b[31m" * 9}, {"x": "y" * 100_000}, wrong(rng)))
    elif kind == 9:
        entry["shape"] = [*entry["shape"], 1]
    else:
        other = rng.choice([other for other in header if other != "__metadata__"])
        header[name], header[other] = header[other], header[name]


def _many(rng: Rng, header: dict[str, Any], data: bytes) -> bytes:
    number = rng.choice((1_000, 60_000, 200_000))
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    prefix = rng.choice(("t", "blocks.0.attn.x", "blocks."))
    return join({**header, **{f"{prefix}{i}": empty for i in range(number)}}, data)


def _numbers(content: bytes, rng: Rng) -> bytes:
    """Not finite, tiny, huge or all zero."""
    header, data = split(content)
    body = bytearray(data)
    word = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x01\x00\x00\x00", b"\xff\xff\x7f\x7f", b"\0\0\0\0"))
    if rng.random() < 0.3:
        return join(header, word * (len(data) // 4))
    for _ in range(rng.choice((1, 10, 1000))):
        at = 4 * rng.randrange(len(data) // 4)
        body[at : at + 4] = word
    return join(header, bytes(body))
