"""One-line faults that `mutants.py` can make in a file: where they are, and the changed text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Key = tuple[str, str, int, str]
"""File, line without indent, column in it, and change."""
_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
}
_TOLD = ("logger", "progress", "warning", "warn", "note", "parser")
"""What is said to people is no result: calls of these are left alone."""
_CRASHING = ("isinstance", "zip", "range", "getattr", "hasattr", "setattr", "Path")
"""Other arguments than these take would end the first test that gets there: no fault worth a run."""


@dataclass(frozen=True)
class Mutant:
    """One fault: the piece of source between two places of a line, and what stands there instead."""

    file: str
    line: int
    source: str
    indent: int
    start: int
    stop: int
    kind: str
    before: str
    after: str

    @property
    def change(self) -> str:
        """The change in one line."""
        return f"{self.before} -> {self.after}"

    def applied(self, text: str) -> str:
        """The text of the file with the fault in it."""
        lines = text.splitlines(keepends=True)
        plain = lines[self.line - 1].encode()
        assert plain[self.start : self.stop].decode() == self.before, "the file has changed"
        lines[self.line - 1] = (plain[: self.start] + self.after.encode() + plain[self.stop :]).decode()
        return "".join(lines)

    @property
    def column(self) -> int:
        """Where the change begins in the line, its indent left out."""
        return self.start - self.indent

    @property
    def key(self) -> Key:
        """What stays the same when lines are written above it."""
        return self.file, self.source, self.column, self.change

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, as it is recorded."""
        shown = ("file", "line", "source", "column", "kind", "change")
        return {name: getattr(self, name) for name in shown}


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """Every fault that can be made in a file on one line, in the order of the file."""
    text = path.read_text(encoding="utf-8")
    lines = [line.encode() for line in text.splitlines()]
    found = []
    for node, kind, after in _changes(ast.parse(text)):
        if node.lineno != node.end_lineno:
            continue
        start, stop = node.col_offset, node.end_col_offset
        before = lines[node.lineno - 1][start:stop].decode()
        if _bare(before) != _bare(after):
            line = lines[node.lineno - 1].decode()
            indent = len(line) - len(line.lstrip())
            place = (str(path.relative_to(root)), node.lineno, line.strip(), indent, start, stop or start)
            found.append(Mutant(*place, kind, before, after))
    return found


def _bare(text: str) -> str:
    return ast.unparse(ast.parse(text))


def _changes(tree: ast.Module) -> Iterator[tuple[Any, str, str]]:
    """(node, kind, text that stands in its place) for all of a module that computes something."""
    for node in _walk(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            other = ast.Compare(node.left, [_COMPARED[type(node.ops[0])]()], node.comparators)
            yield node, "comparison", f"({ast.unparse(other)})"
        elif isinstance(node, ast.BoolOp):
            flipped = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield node, "and/or", f"({ast.unparse(ast.BoolOp(flipped, node.values))})"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, "not dropped", f"({ast.unparse(node.operand)})"
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _is_path(node):
            yield (
                node,
                "arithmetic",
                f"({ast.unparse(ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right))})",
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, "flag", repr(not node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            value = node.value
            yield node, "number", repr(value + 1 if isinstance(value, int) else value * 2 or 1.0)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node, "call dropped", "pass"
        elif isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func) not in _CRASHING:
            first, second, *rest = node.args
            if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                swapped = ast.Call(node.func, [second, first, *rest], node.keywords)
                yield node, "arguments swapped", ast.unparse(swapped)


def _is_path(node: ast.BinOp) -> bool:
    """Whether a slash joins the names of files."""
    text = ast.unparse(node.left) + ast.unparse(node.right)
    return isinstance(node.op, ast.Div) and any(word in text for word in ("'", "folder", "path", "name", "NAME"))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of types, messages, decorators and what is declared for other modules."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.JoinedStr, ast.Assert)):
                continue
            if isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) in ("__all__", "logger"):
                continue
            if isinstance(child, ast.keyword) and child.arg in ("strict", "frozen", "kw_only"):
                continue
            if isinstance(child, ast.Call) and any(word in ast.unparse(child.func) for word in _TOLD):
                continue
            if isinstance(child, ast.Expr) and any(word in ast.unparse(child).partition("(")[0] for word in _TOLD):
                continue
            yield child
            yield from _walk(child)
