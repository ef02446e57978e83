"""More of all kinds, each tried here for the first time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vitcompact
from tests.checkpoint import layouts

from .libraries import SMALL, both_ways, hugging, logits
from .modules import IMAGES, vit
from .pictures import CLASSES, folders, named_model, picture, top1
from .place import PVT, SWIN, VIT, Place, close, made, noise, shaken, short, situation
from .saving import comes_back

BASE: dict[str, Any] = {"model": "vit_base_patch16_224", "model_kwargs": VIT}


@situation("A", "Swin, a backbone of a detector: prefix, norms of its levels, no head")
def _(place: Place) -> None:
    model = made("swin_tiny_patch4_window7_224", SWIN, num_classes=0)
    weights = layouts.prefixed(layouts.swin(model.state_dict(), 64, 7), "backbone.")
    weights |= {"neck.fpn.weight": torch.zeros(3, 3), "rpn_head.conv.weight": torch.zeros(3, 3)}
    path = place.save({"state_dict": weights, "meta": {"epoch": 12}})
    place.same(path, model, noise(224), model="swin_tiny_patch4_window7_224", model_kwargs=SWIN)
    place.hears("rpn_head")


@situation("A", "a classifier without a bias, one class")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, num_classes=1)
    nn.init.zeros_(model.get_parameter("head.bias"))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "head.bias"}
    place.same(place.save(weights), model, noise(224), **BASE)


@situation("B", "Hydra's configuration under `cfg`, dimensions under `img_size` as a list")
def _(place: Place) -> None:
    model = made("test_vit", img_size=(64, 96), num_classes=3)
    content = {
        "cfg": {"model_name": "test_vit", "img_size": [64, 96], "lr": 0.1},
        "model_state_dict": model.state_dict(),
    }
    place.same(place.save(content), model, noise((64, 96)))


@situation("B", "safetensors beside an `args.yaml`, half precision, OUT in half precision too")
def _(place: Place) -> None:
    model = made("test_vit", img_size=64, num_classes=3).half()
    save_file(model.state_dict(), place / "model.safetensors")
    (place / "args.yaml").write_text("model: test_vit\nnum_classes: 3\ngp: null\nmean: null\n")
    loaded = place.load(place / "model.safetensors")
    assert loaded.dtype == torch.float16
    ran = place.vitcompact("convert", "model.safetensors", "out", "--method", "pair", "--json")
    assert ran.code == 0, ran.err
    assert place.load(place / "out").dtype == torch.float16


@situation("C", "oblong patches, recorded")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, patch_size=(16, 8), img_size=(64, 64), num_classes=3)
    path = place.save({"state_dict": model.state_dict(), "args": {"model": "vit_base_patch16_224", "img_size": 64}})
    place.same(path, model, noise(64), model_kwargs=VIT)


@situation("C", "EVA-02 at another size, rotary positions")
def _(place: Place) -> None:
    model = made("eva02_tiny_patch14_224", VIT, img_size=112, num_classes=3)
    place.same(place.save(model.state_dict()), model, noise(112), model="eva02_tiny_patch14_224", model_kwargs=VIT)


@situation("C", "PVT v2 takes any size, and says nothing of resampling")
def _(place: Place) -> None:
    model = made("pvt_v2_b0", PVT, num_classes=3)
    loaded = place.load(place.save(model.state_dict()), model="pvt_v2_b0", model_kwargs=PVT, img_size=128).model
    close(loaded, model, noise(128))
    assert not any("resampled" in line for line in place.said)


@situation("D", "a Trainer's folder of accelerate: `model.safetensors` beside optimizer and random states")
def _(place: Place) -> None:
    model = made("test_vit", img_size=64, num_classes=3)
    save_file({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, place / "model.safetensors")
    torch.save({"state": {}}, place / "optimizer.bin")
    place.same(place / "model.safetensors", model, noise(64), model="test_vit")
    place.refused(place.folder, "no config.json", "give the file itself")


@situation("D", "Ultralytics' way: `model` empty, the module pickled whole under `ema`, half precision")
def _(place: Place) -> None:
    model = made("test_vit", img_size=64, num_classes=3)
    content = {
        "epoch": -1,
        "model": None,
        "ema": shaken(made("test_vit", img_size=64, num_classes=3)).half(),
        "train_args": {},
    }
    content["ema"].load_state_dict(model.state_dict())
    loaded = place.load(place.save(content), model="test_vit").model
    close(loaded, model.half().float(), noise(64))


@situation("D", "a knowledge-distillation run: teacher and student of two sizes in one state dict")
def _(place: Place) -> None:
    student, teacher = (
        made("vit_base_patch16_224", VIT, num_classes=3),
        made("vit_base_patch16_224", {**VIT, "depth": 3}, num_classes=3),
    )
    both = {**layouts.prefixed(student.state_dict(), "student."), **layouts.prefixed(teacher.state_dict(), "teacher.")}
    path = place.save({"state_dict": both})
    place.same(path, student, noise(224), **BASE, state_key="student")
    place.same(
        path, teacher, noise(224), model="vit_base_patch16_224", model_kwargs={**VIT, "depth": 3}, state_key="teacher"
    )


@situation("E", "transformers: ViT, oblong images, one channel")
def _(place: Place) -> None:
    args = {**SMALL, "image_size": [32, 64], "num_channels": 1}
    model = hugging("ViTForImageClassification", "ViTConfig", args, place)
    both_ways(place, logits(model), noise((32, 64), 1))


@situation("E", "transformers: a detector, whose layout is named")
def _(place: Place) -> None:
    hugging(
        "YolosForObjectDetection", "YolosConfig", {**SMALL, "image_size": [32, 32], "num_detection_tokens": 4}, place
    )
    message = place.refused(place / "theirs", "yolos", "read are")
    assert "timm checkpoint" in message


@situation("E", "open_clip's training checkpoint, by file and timm name")
def _(place: Place) -> None:
    library = pytest.importorskip("open_clip")
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 64, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16}
    model = shaken(library.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text))
    content = {"epoch": 1, "name": "run", "state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}
    path = place.save(content, "epoch_1.pt")
    place.same(path, model.encode_image, noise(64), model="vit_base_patch16_clip_224", model_kwargs=VIT)


@situation("F", "complex, empty and integer tensors beside the weights, a generator's state")
def _(place: Place) -> None:
    model = made("test_vit", img_size=64, num_classes=3)
    content: dict[str, Any] = {"state_dict": model.state_dict(), "spectrum": torch.zeros(3, dtype=torch.complex64)}
    content |= {"seen": torch.zeros(0), "rng_state": torch.get_rng_state(), "np": np.arange(4.0)}
    place.same(place.save(content), model, noise(64), model="test_vit")


@situation("F", "a file that is cut off")
def _(place: Place) -> None:
    path = place.save(made("test_vit", img_size=64).state_dict())
    path.write_bytes(path.read_bytes()[:5000])
    ran = place.vitcompact("analyze", path, "--model", "test_vit", "--json")
    assert ran.code == 4, ran.err
    short(ran.err, "damaged")


@situation("G", "a twin network: the same backbone called twice")
def _(place: Place) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = vit(num_classes=0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cosine_similarity(self.body(x), self.body(x.flip(-1)))[:, None]

    images = torch.randn(IMAGES)
    compact = vitcompact.convert(Twins().eval(), images=images, ratio=0.5)
    assert isinstance(compact, Twins)
    assert compact(images).shape == (8, 1)


@situation("G", "frozen weights stay frozen, and training mode stays as it was")
def _(place: Place) -> None:
    model = vit().train()
    model.requires_grad_(False)
    vitcompact.convert(model, images=torch.randn(IMAGES), ratio=0.5)
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@situation("H", "registers, layer scale, no class token, another depth: arguments that timm's factory was given")
def _(place: Place) -> None:
    comes_back(place, vit(reg_tokens=2, class_token=False, global_pool="avg", init_values=0.1, depth=2))


@situation("I", "`torch.compile` of a folded model is one graph")
def _(place: Place) -> None:
    model, images = vit(), torch.randn(IMAGES)
    folded = vitcompact.fold(vitcompact.convert(model, images=images, ratio=0.5), images=images)
    close(torch.compile(folded, backend="eager", fullgraph=True), folded, images)  # type: ignore[arg-type]


@situation("J", "folders with hidden files, thumbnails of the system and an empty class")
def _(place: Place) -> None:
    folders(place / "data")
    (place / "data/ant/.DS_Store").write_bytes(b"x")
    (place / "data/bee/Thumbs.db").write_bytes(b"x")
    (place / "data/cat/notes.txt").write_text("x")
    before, _ = top1(place, named_model(place), "--data-dir", "data")
    assert 0 <= before <= 100


@situation("J", "upper-case endings and class names of other cases and underscores")
def _(place: Place) -> None:
    for c, name in enumerate(("Ant", "BEE", "cat")):
        (place / "data" / name).mkdir(parents=True)
        picture(c).convert("RGB").save(place / "data" / name / "0.JPG", "JPEG")
    _, said = top1(place, named_model(place), "--data-dir", "data")
    assert "no class" not in said


@situation("J", "a flat folder of images calibrates, and evaluating on it says that there are no labels")
def _(place: Place) -> None:
    (place / "flat").mkdir()
    for i in range(6):
        picture(i).save(place / "flat" / f"{i}.webp")
    path = named_model(place)
    ran = place.vitcompact("convert", path, "out", "--data-dir", "flat", "--method", "pair", "--json")
    assert ran.code == 0, ran.err
    scored = place.vitcompact("eval", "out", "--data-dir", "flat", "--json")
    assert "no labels" in scored.err or scored.code == 0, scored.err
    assert json.loads(scored.out)["top1"] is None
    assert len(CLASSES) == 3
