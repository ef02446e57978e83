from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vitcompact.data.decode import UnreadableImageError, decode

from .image_files import bomb, corrupt_files, encoded, picture


@pytest.mark.parametrize("name", sorted(corrupt_files()))
def test_damaged_files_become_one_exception_with_a_reason(name: str) -> None:
    with pytest.raises(UnreadableImageError, match=r"\w+"):
        decode(corrupt_files()[name])


def test_a_bomb_is_refused_without_allocating_its_pixels() -> None:
    with pytest.raises(UnreadableImageError, match="pixels"):
        decode(bomb())


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("L", "JPEG"), ("1", "PNG")]
)
def test_every_colour_mode_becomes_rgb(mode: str, kind: str) -> None:
    image = decode(encoded(picture(1).convert(mode), kind))
    assert (image.mode, image.size) == ("RGB", (24, 20))


def test_grey_model_gets_grey_images() -> None:
    assert decode(encoded(picture(1)), "L").mode == "L"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    values = np.asarray(decode(encoded(Image.fromarray(ramp))))[..., 0]
    np.testing.assert_allclose(values, ramp // 257, atol=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_images_are_reduced_but_not_below_the_size_asked(kind: str) -> None:
    image = decode(encoded(picture(1, 300, 420), kind), shrink_to=40)
    assert 40 <= min(image.size) < 80
    assert image.width / image.height == pytest.approx(1.4, abs=0.05)


def test_nothing_is_reduced_unless_asked() -> None:
    assert decode(encoded(picture(1, 300, 420))).size == (420, 300)


def test_what_would_start_a_program_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript named like a photograph: Pillow would hand it to Ghostscript."""
    started: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: started.append(args))
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"
    Image.open(io.BytesIO(page)).load  # noqa: B018  (Pillow by itself knows it)
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode(page)
    assert not started


def test_a_photograph_with_a_second_picture_inside_is_a_photograph() -> None:
    """Cameras write such files with the name .jpg (MPO)."""
    stream = io.BytesIO()
    picture(1).save(stream, "MPO", save_all=True, append_images=[picture(2)])
    assert decode(stream.getvalue()).size == (24, 20)


def test_more_pixels_than_cameras_take_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcompact.data.decode.MAX_PIXELS", 24 * 20 - 1)
    with pytest.raises(UnreadableImageError, match="24 x 20 pixels: more than 479"):
        decode(encoded(picture(1)))
