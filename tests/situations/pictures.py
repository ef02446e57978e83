"""J. Images as people have them: every kind of file, turned photographs, renamed class folders, columns, channels."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from .place import Place, RoughError, made, situation

CLASSES = ("ant", "bee", "cat")


def pixels(i: int, channels: int = 3, size: int = 40) -> Any:
    return np.random.default_rng(i).integers(0, 255, (size, size, channels), dtype=np.uint8)


def picture(i: int) -> Image.Image:
    return Image.fromarray(pixels(i))


def folders(root: Path, suffix: str = ".png", names: tuple[str, ...] = CLASSES, count: int = 4, **save: Any) -> None:
    """Class folders of noise; image i of class c is the same whatever the folder is called."""
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * c + i).save(root / name / f"{i}{suffix}", **save)


def named_model(place: Place, **recorded: Any) -> Path:
    """A checkpoint that records the names of its classes."""
    model = made("test_vit", img_size=32, num_classes=3, **recorded)
    return place.save(
        {
            "arch": "test_vit",
            "state_dict": model.state_dict(),
            "args": {"model": "test_vit", "label_names": list(CLASSES)},
        }
    )


def top1(place: Place, path: Path, *words: object) -> tuple[float, str]:
    ran = place.vitcompact("eval", path, *words, "--json")
    assert ran.code == 0, ran.err
    return ran.result["top1"], " ".join(ran.err.split())


@situation("J", "webp, tif, bmp, gif and avif in one folder")
def _(place: Place) -> None:
    kinds = [".webp", ".tif", ".bmp", ".gif", ".tiff", ".jp2"] + ([".avif"] if features.check("avif") else [])
    for c, name in enumerate(CLASSES):
        (place / "data" / name).mkdir(parents=True)
        for i, suffix in enumerate(kinds):
            picture(c + i).save(place / "data" / name / f"{i}{suffix}")
    ran = place.vitcompact("eval", named_model(place), "--data-dir", "data", "--json")
    assert ran.code == 0, ran.err
    assert ran.result["num_samples"] == 3 * len(kinds)


@situation("J", "kinds that are not read are counted and shown")
def _(place: Place) -> None:
    folders(place / "data")
    for i in range(5):
        (place / "data/ant" / f"{i}.heic").write_bytes(b"x")
    _, said = top1(place, named_model(place), "--data-dir", "data")
    assert "5 .heic" in said, said


@situation("J", "photographs with an orientation tag, as timm takes them, and said")
def _(place: Place) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folders(place / "data", ".jpg", exif=exif)
    _, said = top1(place, named_model(place), "--data-dir", "data")
    assert "12 images carry an EXIF rotation, which is ignored, as timm does" in said, said


@situation("J", "class folders in another order by name: labels follow the model's names")
def _(place: Place) -> None:
    path = named_model(place)
    folders(place / "data")
    before, _ = top1(place, path, "--data-dir", "data")
    (place / "args").mkdir()
    model = place.load(path).model
    import vitcompact

    cfg: Any = model.pretrained_cfg
    cfg["label_names"] = ["cat", "ant", "bee"]
    head = model.get_submodule("head")
    head.weight.data, head.bias.data = head.weight.data[[2, 0, 1]].clone(), head.bias.data[[2, 0, 1]].clone()  # type: ignore[index]
    vitcompact.save(model, place / "turned")
    after, said = top1(place, place / "turned", "--data-dir", "data")
    assert before == after
    assert "matched by the model's class names" in said


@situation("J", "renamed class folders: refused where some are the model's, warned where none is")
def _(place: Place) -> None:
    path = named_model(place)
    folders(place / "some", names=("ant", "bee", "dog"))
    ran = place.vitcompact("eval", path, "--data-dir", "some", "--json")
    assert ran.code == 2, ran.err
    assert "dog" in ran.err
    assert "class-map" in ran.err
    folders(place / "none", names=("n01", "n02", "n03"))
    _, said = top1(place, path, "--data-dir", "none")
    assert "class-map" in said, said


@situation("J", "a class folder is missing: labels of the others do not shift")
def _(place: Place) -> None:
    path = named_model(place)
    folders(place / "data", names=("bee", "cat"))
    _, said = top1(place, path, "--data-dir", "data")
    assert "matched by the model's class names" in said, said


@situation("J", "a class map in another order beats folder names")
def _(place: Place) -> None:
    path = named_model(place)
    folders(place / "data")
    (place / "map.txt").write_text("cat\nbee\nant\n")
    top1(place, path, "--data-dir", "data", "--class-map", "map.txt")


@situation("J", "a pickled class map is never unpickled")
def _(place: Place) -> None:
    import pickle

    class Boom:
        def __reduce__(self) -> Any:
            return (Path.touch, (place / "ran",))

    path = named_model(place)
    folders(place / "data")
    (place / "map.pkl").write_bytes(pickle.dumps(Boom()))
    ran = place.vitcompact("eval", path, "--data-dir", "data", "--class-map", "map.pkl", "--json")
    assert not (place / "ran").exists()
    assert ran.code == 2, ran.err
    assert ".txt" in ran.err
    assert "one class name" in " ".join(ran.err.split())


@situation("J", "`hfds` with other splits and column names, from a local folder")
def _(place: Place) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"picture": datasets.Image(), "species": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"picture": [picture(i) for i in range(9)], "species": [i % 3 for i in range(9)]}
    table = datasets.Dataset.from_dict(rows, features=kinds)
    (place / "hf/data").mkdir(parents=True)
    table.to_parquet(str(place / "hf/data/holdout-00000-of-00001.parquet"))
    words = (
        "--dataset",
        f"hfds/{place / 'hf'}",
        "--val-split",
        "holdout",
        "--input-key",
        "picture",
        "--target-key",
        "species",
    )
    ran = place.vitcompact("eval", named_model(place), *words, "--json")
    assert ran.code == 0, ran.err
    assert ran.result["num_samples"] == 9


@situation("J", "`hfds` with a column that is not there names those that are")
def _(place: Place) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"picture": datasets.Image(), "species": datasets.ClassLabel(names=list(CLASSES))})
    table = datasets.Dataset.from_dict({"picture": [picture(0)], "species": [0]}, features=kinds)
    (place / "hf/data").mkdir(parents=True)
    table.to_parquet(str(place / "hf/data/train-00000-of-00001.parquet"))
    words = ("--dataset", f"hfds/{place / 'hf'}", "--val-split", "train")
    for more in (("--input-key", "picture", "--target-key", "kind"), ()):
        ran = place.vitcompact("eval", named_model(place), *words, *more, "--json")
        assert ran.code == 2, ran.err
        if "species" not in ran.err:
            raise RoughError(ran.err)


def shards(place: Place, *, sidecar: bool) -> tuple[object, ...]:
    """WebDataset shards with images under `img.png` and labels in a sidecar, and the words that name them."""
    pytest.importorskip("webdataset")
    (place / "wds").mkdir()
    with tarfile.open(place / "wds/test-000.tar", "w") as tar:
        for i in range(6):
            stream = io.BytesIO()
            picture(i).save(stream, "PNG")
            label = ("json", json.dumps({"species": i % 3})) if sidecar else ("label", str(i % 3))
            for suffix, data in (("img.png", stream.getvalue()), (label[0], label[1].encode())):
                info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    split = {"name": "holdout", "num_samples": 6, "filenames": ["test-000.tar"], "shard_lengths": [6]}
    (place / "wds/_info.json").write_text(json.dumps({"splits": {"holdout": split}}))
    words = ("--dataset", "wds/mine", "--data-dir", "wds", "--val-split", "holdout", "--input-key", "img.png")
    return (*words, "--target-key", "species")


@situation("J", "`wds` shards with other keys and a split of its own")
def _(place: Place) -> None:
    ran = place.vitcompact("eval", named_model(place), *shards(place, sidecar=True), "--json")
    assert ran.code == 0, ran.err
    assert ran.result["num_samples"] == 6


@situation("J", "`wds` shards whose labels are elsewhere")
def _(place: Place) -> None:
    ran = place.vitcompact("eval", named_model(place), *shards(place, sidecar=False), "--json")
    assert ran.code == 2, ran.err
    assert "species" in ran.err
    assert "json sidecar" in ran.err
    assert "bug in vitcompact" not in ran.err


@situation("J", "four-channel `.tif` and 12-channel `.npy`")
def _(place: Place) -> None:
    for channels, suffix in ((4, ".tif"), (12, ".npy")):
        model = made("test_vit", img_size=32, num_classes=3, in_chans=channels)
        path = place.save({"arch": "test_vit", "state_dict": model.state_dict()}, f"w{channels}.pth")
        for c, name in enumerate(CLASSES):
            (place / f"data{channels}" / name).mkdir(parents=True)
            for i in range(3):
                file = place / f"data{channels}" / name / f"{i}{suffix}"
                values = pixels(c + i, channels)
                if suffix == ".npy":
                    np.save(file, values)
                else:
                    Image.fromarray(values, "CMYK").save(file)
        words = ("--mean", ",".join(["0.5"] * channels), "--std", ",".join(["0.5"] * channels))
        ran = place.vitcompact("eval", path, "--data-dir", f"data{channels}", *words, "--json")
        assert ran.code == 0, ran.err
        assert ran.result["num_samples"] == 9


@situation("J", "sixteen-bit grey PNGs and images with a palette and transparency")
def _(place: Place) -> None:
    for name in CLASSES:
        (place / "data" / name).mkdir(parents=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 65535, (40, 40), dtype=np.uint16)).save(
            place / "data" / name / "a.png"
        )
        picture(1).convert("P").save(place / "data" / name / "b.png", transparency=0)
        picture(2).convert("RGBA").save(place / "data" / name / "c.webp")
    ran = place.vitcompact("eval", named_model(place), "--data-dir", "data", "--json")
    assert ran.code == 0, ran.err
    assert ran.result["num_samples"] == 9
