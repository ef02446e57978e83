from __future__ import annotations

import shutil
from pathlib import Path

from vitcompact.data import DataOptions, overlap

from .image_files import as_tar, fill


def test_identical_files_are_counted_whatever_their_name_or_packing(image_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(image_folder / "ant" / "3.png", other / "renamed.png")
    shutil.copy(image_folder / "bee" / "1.png", other / "also.png")
    (other / "different.png").write_bytes(b"no image, but a file")
    tar = as_tar(other, tmp_path / "other.tar")
    assert overlap(DataOptions(data_dir=image_folder), DataOptions(data_dir=tar)) == 2
    assert overlap(DataOptions(data_dir=image_folder), DataOptions(data_dir=image_folder)) == 18


def test_only_the_images_chosen_are_compared(image_folder: Path) -> None:
    some = DataOptions(data_dir=image_folder, num_samples=5)
    assert overlap(some, DataOptions(data_dir=image_folder)) == 5
    assert overlap(DataOptions(data_dir=image_folder), DataOptions(data_dir=image_folder), limit=4) == 4


def test_splits_of_one_folder(tmp_path: Path) -> None:
    fill(tmp_path / "train", ("ant",), each=4)
    fill(tmp_path / "val", ("ant", "bee"), each=2)
    shutil.copy(tmp_path / "train" / "ant" / "3.png", tmp_path / "val" / "bee" / "leaked.png")
    options = DataOptions(data_dir=tmp_path)
    assert overlap(options, options) == 3  # the first two ants and the leaked one
