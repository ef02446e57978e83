"""Which files are images, what is said of the others, and pictures of other than three channels."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions

from vitcompact.data import CalibrationImages, DataOptions, evaluation_batches, open_dataset, training_loader
from vitcompact.data.kinds import image_suffixes
from vitcompact.errors import DataError
from vitcompact.options.data import Augment

from .image_files import as_tar, encoded, fill, picture

KINDS = {
    **{".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".gif": "GIF", ".avif": "AVIF"},
    **{".ppm": "PPM", ".JPG": "JPEG", ".jp2": "JPEG2000", ".tga": "TGA"},
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("suffix", KINDS)
def test_every_kind_that_pillow_reads_is_taken(suffix: str, packed: bool, tmp_path: Path) -> None:
    if suffix.lower() not in image_suffixes():
        pytest.skip(f"this build of Pillow does not read {suffix}")
    root = fill(tmp_path / "images", each=1)
    (root / "bee" / f"more{suffix}").write_bytes(encoded(picture(7), KINDS[suffix]))
    before = get_img_extensions()
    dataset = open_dataset(DataOptions(data_dir=as_tar(root, tmp_path / "i.tar") if packed else root), "train")
    assert len(dataset) == 4  # type: ignore[arg-type]
    assert get_img_extensions() == before  # timm's own list is as it was
    image, label = dataset.load(2)  # type: ignore[union-attr]
    assert (image.size, label) == ((24, 20), 1)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a.heic", "b.HEIC", "c.cr2"), r"left out 3 files of kinds that are not read \(1 \.cr2, 2 \.heic\)"),
        (("a.psd",), r"left out 1 files .* \(1 \.psd\)"),
        (("a.eps", "b.pdf"), r"\(1 \.eps, 1 \.pdf\)"),
        (("labels.csv", "notes.txt", ".hidden.heic"), ""),
        (("d.npy",), ""),
    ],
)
def test_what_is_left_out_is_counted_and_said_once(
    names: tuple[str, ...], said: str, image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in names:
        (image_folder / "ant" / name).write_bytes(b"x")
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    images = CalibrationImages(model, DataOptions(data_dir=image_folder))
    list(images)
    assert images.num_samples == 18
    assert caplog.text.count("left out") == bool(said)
    if said:
        caplog.clear()
        training_loader(model, DataOptions(data_dir=image_folder, batch_size=2))
        assert re.search(said, caplog.text)


def rotated() -> bytes:
    image = picture(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_an_exif_rotation_is_ignored_as_in_timm_and_said(image_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        (image_folder / "ant" / f"turned{number}.jpg").write_bytes(rotated())
    dataset = open_dataset(DataOptions(data_dir=image_folder), "train")
    names = [dataset.name(index) for index in range(len(dataset))]  # type: ignore[arg-type,union-attr]
    turned = names.index("ant/turned0.jpg")
    assert dataset.load(turned)[0].size == (24, 20)  # type: ignore[union-attr]
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    batches = evaluation_batches(model, DataOptions(data_dir=image_folder))
    for _ in range(2):
        list(batches)
    assert caplog.text.count("3 images carry an EXIF rotation, which is ignored, as timm does") == 1


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _pages(count: int) -> bytes:
    pages = [picture(i).convert("L") for i in range(count)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def _values(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (channels, 20, 24)).astype(np.uint8)


CHANNELS: dict[str, tuple[int, str, Callable[[], bytes]]] = {
    "npy": (5, "a.npy", lambda: _npy(_values(5))),
    "npy, channels last": (5, "a.npy", lambda: _npy(_values(5).transpose(1, 2, 0))),
    "npy, 16 bits": (12, "a.npy", lambda: _npy(_values(12).astype(np.uint16) * 257)),
    "npy, floating point": (4, "a.npy", lambda: _npy((_values(4) / 255).astype(np.float32))),
    "tif of pages": (6, "a.tif", lambda: _pages(6)),
    "png with alpha": (4, "a.png", lambda: encoded(picture(1).convert("RGBA"))),
    "tif of two bands": (2, "a.tif", lambda: encoded(picture(1).convert("LA"), "TIFF")),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_pictures_of_other_channels(kind: str, tmp_path: Path) -> None:
    channels, name, content = CHANNELS[kind]
    (tmp_path / name).write_bytes(content())
    model = timm.create_model("test_vit", img_size=16, in_chans=channels, num_classes=0)
    options = DataOptions(data_dir=tmp_path, batch_size=1, mean=(0.0,), std=(1.0,), crop_pct=1.0, crop_mode="squash")
    (images,) = CalibrationImages(model, options)
    assert images.shape == (1, channels, 16, 16)
    assert len({float(plane.mean()) for plane in images[0]}) > 1
    if name.endswith("npy"):
        expected = torch.tensor(_values(channels).mean((1, 2)) / 255, dtype=torch.float32)
        assert torch.allclose(images[0].mean((1, 2)), expected, atol=0.02)
    trained, _ = next(training_loader(model, options, Augment()).batches())
    assert trained.shape == images.shape


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.npy", _npy(_values(3)), r"an array \(3, 20, 24\), the model takes 5 channels"),
        ("a.npy", _npy(np.array([{}], dtype=object)), "allow_pickle"),
        ("a.npy", _npy(_values(5).astype(np.int64)), "neither 8 nor 16 bits nor from 0 to 1"),
        ("a.npy", _npy(_values(5))[:100], "."),
        ("a.png", encoded(picture(1)), "3 channels, the model takes 5"),
        ("a.tif", _pages(4), "4 channels, the model takes 5"),
    ],
)
def test_pictures_of_the_wrong_channels_are_refused_by_name(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    model = timm.create_model("test_vit", img_size=16, in_chans=5, num_classes=0)
    with pytest.raises(DataError, match=f"none of the 1 images .* {name} .*{reason}"):
        CalibrationImages(model, DataOptions(data_dir=tmp_path))
