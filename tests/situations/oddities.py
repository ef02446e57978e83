"""F. Whatever else is in a checkpoint: the job goes on, or one message says why not."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .place import Place, close, made, noise, situation

NAME = "test_vit"


def small() -> Any:
    return made(NAME, num_classes=3, img_size=64)


class Bag(dict[str, Any]):
    """A training script's own kind of dictionary."""


class Ordered(collections.OrderedDict[str, Any]):
    """A training script's own kind of state dict."""


@situation("F", "NumPy numbers, a path, a defaultdict and a class of its own beside the weights")
def _(place: Place) -> None:
    model = small()
    content = {
        "state_dict": Ordered(model.state_dict()),
        "best": np.float32(0.5),
        "out": Path("/tmp/x"),
        "config": Bag(lr=0.1),
    }
    content |= {"history": collections.defaultdict(list, loss=[np.float64(1.0)]), "rng": np.random.get_state()}
    place.same(place.save(content), model, noise(64), model=NAME)


@situation("F", "float8 weights")
def _(place: Place) -> None:
    model = small()
    weights = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    place.same(place.save(weights), model, noise(64), model=NAME)


@situation("F", "a pruned, sparse layer")
def _(place: Place) -> None:
    model = small()
    weights = model.state_dict()
    for name in ("blocks.0.mlp.fc1.weight", "head.weight"):
        weights[name] = weights[name].to_sparse()
    weights["blocks.0.mlp.fc2.weight"] = weights["blocks.0.mlp.fc2.weight"].to_sparse_csr()
    place.same(place.save(weights), model, noise(64), model=NAME)


@situation("F", "bitsandbytes' eight-bit weights")
def _(place: Place) -> None:
    weights = small().state_dict()
    weights["blocks.0.attn.qkv.weight"] = (weights["blocks.0.attn.qkv.weight"] * 127).to(torch.int8)
    weights["blocks.0.attn.qkv.SCB"] = torch.ones(len(weights["blocks.0.attn.qkv.weight"]))
    place.refused(place.save(weights), "quantised", model=NAME)


@situation("F", "torch's old format of files, float16")
def _(place: Place) -> None:
    model = small().half()
    torch.save({"model": model.state_dict()}, place / "old.pth", _use_new_zipfile_serialization=False)
    loaded = place.load(place / "old.pth", model=NAME)
    assert loaded.dtype == torch.float16
    close(loaded.model, model.float(), noise(64))


@situation("F", "pruning masks of `torch.nn.utils.prune`")
def _(place: Place) -> None:
    from torch.nn.utils import prune

    model = small()
    prune.l1_unstructured(model.blocks[0].mlp.fc1, "weight", 0.3)
    place.refused(place.save(model.state_dict()), "weight_mask", model=NAME)


@situation("F", "a weight normalised by `torch.nn.utils.parametrizations`")
def _(place: Place) -> None:
    model = small()
    torch.nn.utils.parametrizations.weight_norm(model.head)
    place.refused(place.save(model.state_dict()), "parametrizations", model=NAME)


@situation("F", "weights that are not finite are named")
def _(place: Place) -> None:
    model = small()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
    ran = place.vitcompact("analyze", place.save(model.state_dict()), "--model", NAME, "--method", "pair", "--json")
    assert ran.code in (2, 4)
    assert "blocks.1.mlp.fc1.weight" in ran.err


def pictures(folder: Path, count: int = 6) -> None:
    for name in ("ant", "bee", "cat"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@situation("F", "the optional evaluation split is missing")
def _(place: Place) -> None:
    pictures(place / "data/train")
    path = place.save({"arch": NAME, "state_dict": small().state_dict()})
    words = ("--data-dir", "data", "--method", "pair", "--json")
    ran = place.vitcompact("convert", path, "out", *words)
    assert ran.code == 0, ran.err
    tuned = place.vitcompact("finetune", "out", "tuned", "--data-dir", "data", "--steps", "1", "-b", "4", "--json")
    assert tuned.code == 0, tuned.err
    assert (
        tuned.result["top1"]["after"] is None
        if isinstance(tuned.result["top1"], dict)
        else tuned.result["top1"] is None
    )


@situation("F", "`--json` is one document whatever timm prints")
def _(place: Place) -> None:
    import timm.data.readers.reader_image_folder as reader

    pictures(place / "data/train")
    path = place.save({"arch": NAME, "state_dict": small().state_dict()})
    before = reader.find_images_and_targets

    def loud(*args: Any, **kwargs: Any) -> Any:
        print("timm prints this")  # noqa: T201
        return before(*args, **kwargs)

    reader.find_images_and_targets = loud
    try:
        ran = place.vitcompact("convert", path, "out", "--data-dir", "data", "--method", "pair", "--json")
    finally:
        reader.find_images_and_targets = before
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["out"]
