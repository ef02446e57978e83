"""What takes long in the commands that are interrupted, computed once and remembered.

So a command that is ended hundreds of times comes to its writing at once; everything that writes is the real code.
"""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitcompact.exporting.onnx_file import Onnx

REMEMBERED = (
    "vitcompact.cli.verbs.convert.convert",
    "vitcompact.cli.verbs.convert.make_plan",
    "vitcompact.cli.verbs.fold.fold",
    "vitcompact.cli.verbs.analyze.analyze",
    "vitcompact.cli.verbs.compact.compact",
    "vitcompact.cli.verbs.compare.compare",
    "vitcompact.exporting.export._checked",
)
"""What takes long and writes nothing."""


class Memory:
    """Results of long calls by their turn in a command, kept in a folder for other processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key, self.off = "", False
        self._turns: dict[str, int] = {}
        self._found: dict[Path, bytes] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, key: str, off: bool = False) -> None:
        """A command begins: its calls are told by `key` and their turn; `off` lets them be made."""
        self.key, self._turns, self.off = "".join(c if c.isalnum() else "_" for c in key), {}, off

    def install(self) -> None:
        """Let the long calls of this process be remembered."""
        for name in REMEMBERED:
            self.remembers(name)
        self.remembers_exports()

    def remembers(self, name: str) -> None:
        """Wrap a function of a module, by its dotted name."""
        module, _, attribute = name.rpartition(".")
        home = importlib.import_module(module)
        plain = getattr(home, attribute)
        setattr(home, attribute, lambda *args, **kwargs: self._of(attribute, lambda: plain(*args, **kwargs)))

    def remembers_exports(self) -> None:
        """Let ONNX files be written as they were the first time, in two files where their name says `large`."""
        write = Onnx.write

        def again(form: Onnx, job: Any, path: Path) -> None:
            def first() -> dict[str, bytes]:
                write(form, job, path)
                return {each.name: each.read_bytes() for each in path.parent.iterdir()}

            files = self._of("onnx", first)
            if path.name.startswith("large"):
                files = {**files, f"{path.name}.data": b"weights of " + files[path.name][-64:]}
            for name, content in files.items():
                (path.parent / name).write_bytes(content)

        Onnx.write = again  # type: ignore[method-assign,assignment]

    def _of(self, name: str, compute: Callable[[], Any]) -> Any:
        if self.off:
            return compute()
        turn = self._turns[name] = self._turns.get(name, 0) + 1
        path = self.folder / f"{self.key}-{name}-{turn}"
        if path not in self._found and path.exists():
            self._found[path] = path.read_bytes()
        if path not in self._found:
            found = compute()
            self._found[path] = pickle.dumps(found)
            path.write_bytes(self._found[path])
            return copy.deepcopy(found)
        return pickle.loads(self._found[path])
