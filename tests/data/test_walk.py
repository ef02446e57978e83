"""Folders and tars that wait, go in circles or claim sizes: one message before anything of them is read."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vitcompact.data import open_dataset
from vitcompact.errors import DataError, UsageError
from vitcompact.options.data import DataOptions


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def pipe(root: Path) -> None:
    os.mkfifo(root / "cat" / "b.png")


def device(root: Path) -> None:
    (root / "cat" / "b.png").symlink_to("/dev/zero")


def circle(root: Path) -> None:
    (root / "cat" / "again").symlink_to(root)


def two_circles(root: Path) -> None:
    for name in ("one", "two"):
        (root / name).symlink_to(root)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (pipe, "is a pipe or a device"),
        (device, "is a pipe or a device"),
        (circle, "is a link to a folder that it lies in"),
        (two_circles, "is a link to a folder that it lies in"),
    ],
)
def test_folders(spoil: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(png())
    assert len(open_dataset(DataOptions(data_dir=str(tmp_path)), "train")) == 1  # type: ignore[arg-type]
    spoil(tmp_path)
    with pytest.raises(DataError, match=reason):
        open_dataset(DataOptions(data_dir=str(tmp_path)), "train")


def test_links_that_multiply_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcompact.data.walk.MAX_FOLDERS", 1_000)
    for number in range(20):
        (tmp_path / f"{number}").mkdir()
        for name in "ab":
            (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
    with pytest.raises(DataError, match="links that multiply"):
        open_dataset(DataOptions(data_dir=str(tmp_path / "0")), "train")


def test_honest_links_stay(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(png())
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "cat" / "b.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "images" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert len(open_dataset(DataOptions(data_dir=str(tmp_path / "images")), "train")) == 3  # type: ignore[arg-type]


def tar_of(path: Path, member: tarfile.TarInfo, content: bytes = b"", claimed: int | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        image = tarfile.TarInfo("cat/a.png")
        image.size = len(png())
        archive.addfile(image, io.BytesIO(png()))
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        if claimed is not None:
            header = archive.offset - tarfile.BLOCKSIZE
    if claimed is not None:
        member.size = claimed
        data = bytearray(path.read_bytes())
        data[header : header + tarfile.BLOCKSIZE] = member.tobuf(tarfile.GNU_FORMAT)[: tarfile.BLOCKSIZE]
        path.write_bytes(bytes(data))


def sparse(path: Path) -> None:
    """A member of 10^15 bytes, all of which are a hole."""
    member = tarfile.TarInfo("cat/b.png")
    member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(10**15), "GNU.sparse.map": "0,0"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)


def linked(kind: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        member = tarfile.TarInfo("cat/b.png")
        member.type, member.linkname = kind, "cat/b.png"
        tar_of(path, member)

    return make


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (sparse, "claims 1,000,000,000,000,000 bytes"),
        (lambda path: tar_of(path, tarfile.TarInfo("cat/b.png"), claimed=2**62), "claims 4,611,686,018,427,387,904"),
        (linked(tarfile.SYMTYPE), "is a link or a device"),
        (linked(tarfile.LNKTYPE), "is a link or a device"),
        (linked(tarfile.CHRTYPE), "is a link or a device"),
        (linked(tarfile.FIFOTYPE), "is a link or a device"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    ],
    ids=["sparse", "claims", "symlink", "hardlink", "device", "pipe_inside", "pipe", "zero"],
)
def test_tars(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "x.tar")
    with pytest.raises(DataError, match=reason):
        open_dataset(DataOptions(data_dir=str(tmp_path / "x.tar")), "train")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be opened"):
        open_dataset(DataOptions(data_dir=name), "train")
