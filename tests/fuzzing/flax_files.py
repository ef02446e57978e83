"""Google's `.npz` checkpoints whose archive, headers, names or numbers are not what they should be."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .image_files import array
from .mutate import Rng, damaged, of_the_system


def hostile_npz(path: Path, arrays: dict[str, Any], rng: Rng) -> None:
    """An archive of arrays, mostly with something wrong."""
    if of_the_system(path, rng):
        return
    entries = {name: _saved(value) for name, value in arrays.items()}
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        _spoil(entries, arrays, rng)
    buffer = io.BytesIO()
    kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}{rng.choice(('.npy',) * 1_000 + ('', '.npy.npy', '.pkl'))}", content)
        if rng.random() < 0.02:
            archive.writestr("zeros.npy", bytes(3 << 26))
    content = buffer.getvalue()
    path.write_bytes(damaged(content, rng) if rng.random() < 0.3 else content)


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def _spoil(entries: dict[str, bytes], arrays: dict[str, Any], rng: Rng) -> None:
    name = rng.choice(sorted(entries))
    if rng.random() < 0.3:
        entries[name] = array(rng)
    elif rng.random() < 0.3:
        entries[name] = damaged(entries[name], rng)
    elif rng.random() < 0.3:
        del entries[name]
    elif rng.random() < 0.4:
        digits = rng.choice(("-1", "9" * 30, "1" * 5_000, "٣", "0"))
        entries[name.replace("encoderblock_0", f"encoderblock_{digits}")] = entries.pop(name)
    elif rng.random() < 0.5:
        value = arrays.get(name, np.zeros(3))
        other = np.zeros(rng.choice(((), (0,), (1,) * 20, (3, 1), value.shape[::-1], value.shape[:-1])), "f4")
        entries[name] = _saved(rng.choice((other, value.astype("f2"), value.astype(">f8"), value.view("V4"))))
    else:
        below = rng.choice(("params/", "opt/target/", "../../", "\x1b[31m", "Transformer/encoderblock/"))
        entries[f"{below}{name}"] = entries.pop(name)
