"""What goes wrong in files of any kind: damaged bytes, wrong values in documents."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Rng = Random


def damaged(content: bytes, rng: Rng) -> bytes:
    """A few bytes of `content` lost, changed, repeated or put elsewhere."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 8, 64, 1024))
        kind = rng.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at : at + length] = rng.randbytes(min(length, len(data) - at))
        elif kind == 3:
            data[at : at + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * min(length, len(data) - at)
        elif kind == 4:
            data[at:at] = data[rng.randrange(len(data) + 1) :][:length]
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 7, -1, 2.5, 2.9, 1e9, 1e-320, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30, -(10**30)),
    *(float("inf"), float("-inf"), float("nan"), 1e308),
    *(
        "",
        "x",
        "01",
        "1",
        "nan",
        "None",
        "../../../etc/passwd",
        "/dev/zero",
        "a\0b",
        "\x1b]0;owned\x07\x1b[31m",
        "\x9b31m",
    ),
    *("<script>alert(1)</script>", "\ud800", "é" * 300, "a\nb\nc\nd\ne", "`model='x'`", "%s%n{0}{x}"),
    *("vit_base_patch16_224", "hf-hub:org/name", "os.system", "blocks.0"),
    *([], [[]], {}, {"x": []}, [1, 2], [None], ["x", 1], {"": {}}),
)
MADE: tuple[Callable[[Rng], Any], ...] = (
    lambda rng: "x" * rng.choice((300, 5_000, 200_000)),
    lambda rng: [rng.choice((0, 1, "x", None))] * rng.choice((3, 100, 30_000)),
    lambda rng: {str(number): number for number in range(rng.choice((3, 20_000)))},
    lambda rng: _nested(rng.choice((30, 70, 500))),
    lambda rng: rng.randrange(-(2**40), 2**40),
    lambda rng: rng.uniform(-2, 2),
)


def wrong(rng: Rng) -> Any:
    """A value that hardly any place in a document is made for."""
    return rng.choice(MADE)(rng) if rng.random() < 0.15 else copy.deepcopy(rng.choice(ODD))


def places(document: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every place in a document, as its container and key."""
    items = list(document.items()) if isinstance(document, dict) else []
    items += list(enumerate(document)) if isinstance(document, list) else []
    for key, value in items:
        yield document, key
        if depth < 12:
            yield from places(value, depth + 1)


def changed(document: Any, rng: Rng) -> Any:
    """A copy in which a few values are wrong, missing, misspelt, doubled or exchanged."""
    found_in = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(found_in))
        if not found:
            return wrong(rng)
        inner, key = rng.choice(found)
        kind = rng.randrange(10)
        if kind < 5:
            inner[key] = wrong(rng)
        elif kind == 5:
            del inner[key]
        elif kind == 6 and isinstance(inner, dict):
            inner[rng.choice((f"{key}x", key.upper(), f" {key}", "__class__", ""))] = inner.pop(key)
        elif kind == 7:
            other, place = rng.choice(found)
            with_it = json.loads(json.dumps(other[place])) if _has(other, place) else None
            inner[key] = with_it
        elif kind == 8 and isinstance(inner[key], (int, float)) and not isinstance(inner[key], bool):
            inner[key] = rng.choice(
                (inner[key] * 1000, -inner[key], inner[key] + 1, float(inner[key]), str(inner[key]))
            )
        elif isinstance(inner[key], list):
            inner[key] = inner[key] * rng.choice((0, 2, 100))
        else:
            inner[key] = [inner[key]]
    return found_in


def _has(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else isinstance(key, int) and key < len(container)


def written(document: Any, rng: Rng) -> bytes:
    """A document as JSON, mostly; sometimes in another encoding, doubled, commented, or damaged."""
    content = json.dumps(document, indent=rng.choice((None, 2)), ensure_ascii=rng.random() < 0.9)
    data = content.encode("utf-8", "surrogatepass")
    kind = rng.randrange(20)
    if kind == 0:
        return damaged(data, rng)
    if kind == 1:
        return content.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32")), "surrogatepass")
    if kind == 2:
        return data + rng.choice((data, b"\0", b"// end", b"]"))
    if kind == 3:
        return rng.choice((b"", b" ", b"null", b"[" * 100_000, b'{"a":' * 5_000, b"9" * 5_000, b"\xff\xfe", b"-"))
    return data


def hostile_document(document: Any, rng: Rng) -> bytes:
    """`changed`, `written`."""
    return written(changed(document, rng), rng)


def of_the_system(path: Any, rng: Rng) -> bool:
    """Now and then, something else than a file at `path`; says whether."""
    kind = rng.randrange(100)
    if kind > 4:
        return False
    if kind == 0:
        import os

        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/proc/self/mem")))
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    return True
