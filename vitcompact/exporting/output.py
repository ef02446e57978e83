"""Where an exported file goes: refused early, complete or absent."""

from __future__ import annotations

from pathlib import Path

from vitcompact.errors import UsageError
from vitcompact.exporting.base import Format
from vitcompact.utils.files import publish, publish_files


def check_file(path: str | Path, form: Format, overwrite: bool) -> Path:
    """The path to write, resolved.

    Raises:
        UsageError: it exists and `overwrite` was not given, or is something else than a file of this format.
    """
    try:
        out = Path(path).expanduser().resolve()
        exists, is_dir = out.exists(), out.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{str(path)!r} is no name for a file: {error}") from error
    if is_dir and form.suffix != ".mlpackage":
        raise UsageError(f"{out} is a directory; give the name of a file")
    if is_dir and not (out / "Manifest.json").is_file():
        raise UsageError(f"{out} is not overwritten: it is no Core ML package; give another name")
    beside = [out, *_beside(out, form)]
    if not overwrite and (taken := next((each for each in beside if each.exists()), None)):
        raise UsageError(f"{taken} exists; give another name, or `overwrite=True` to replace it")
    if not exists and (parent := next((p for p in out.parents if p.exists()), None)) and not parent.is_dir():
        raise UsageError(f"cannot write {out}: {parent} is a file")
    return out


def publish_export(folder: Path, out: Path, form: Format) -> int:
    """Give what was written in `folder` its final name; returns its size in bytes."""
    written = folder / out.name
    total = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    if written.is_dir():
        publish(written, out)
    else:
        publish_files(folder, out, _beside(out, form))
    return total


def _beside(out: Path, form: Format) -> list[Path]:
    """Further files of the format beside the named one."""
    return [out.with_name(out.name.removesuffix(out.suffix) + suffix) for suffix in form.extra_suffixes]
