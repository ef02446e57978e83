"""TorchScript archives: their tensors, by name, without the code in them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from vitcompact.checkpoint.claims import Search
from vitcompact.checkpoint.inert import Inert, Standin

_CODE = "__torch__."  # modules that the archive defines
_LISTS = "torch.jit._pickle."  # functions of torch that rebuild typed lists
_KEPT = ("data.pkl", "data/", "version", ".data/version", "byteorder")


class ScriptModule(Inert):
    """In the place of a module that the archive defines: its attributes."""

    attributes: Mapping[str, object] = {}

    def __setstate__(self, state: object) -> None:
        """Keep them."""
        self.attributes = state if isinstance(state, Mapping) else {}


def is_script(path: Path) -> bool:
    """Whether a file is what `torch.jit.save` writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def without_code(path: Path) -> io.BytesIO:
    """The archive as `torch.save` would have written it: objects and tensors, and none of its code."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as stripped:
        for name in archive.namelist():
            if name.partition("/")[2].startswith(_KEPT):
                stripped.writestr(name, archive.read(name))
    copy.seek(0)
    return copy


def script_standins(names: list[str]) -> list[tuple[Standin, str]]:
    """Stand-ins for what the objects of an archive refer to; see `inert.standins`."""
    modules: list[tuple[Standin, str]] = [(ScriptModule, name) for name in names if name.startswith(_CODE)]
    return modules + [(Inert, name) for name in names if name.startswith(_LISTS)]


def script_tensors(module: object) -> dict[str, Tensor]:
    """Tensors of a module and those below it, by dotted name: parameters, buffers and whatever else it holds."""
    return dict(_tensors(module, "", 0, Search()))


def _tensors(module: object, prefix: str, depth: int, search: Search) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, ScriptModule):
        return
    search.enter(len(module.attributes), depth)
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _tensors(value, f"{prefix}{name}.", depth + 1, search)
