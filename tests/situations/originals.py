"""A. Files of the original repositories: converted first, then sizes and heads are read off."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from torch import nn

from tests.checkpoint import layouts

from .place import PVT, SWIN, VIT, Place, made, noise, situation


@situation("A", "Microsoft's Swin, 21 classes, with optimizer, scheduler and a yacs configuration")
def _(place: Place) -> None:
    model = made("swin_tiny_patch4_window7_224", SWIN, num_classes=21)
    optimizer = torch.optim.AdamW(model.parameters())
    content = {"model": layouts.swin(model.state_dict(), 64, 7), "optimizer": optimizer.state_dict(), "epoch": 299}
    content |= {"max_accuracy": 81.2, "config": type("CfgNode", (dict,), {"__module__": "__main__"})}
    del content["config"]  # a class of a package that is not installed cannot be pickled here
    path = place.save(content, "swin_ft.pth")
    place.same(path, model, noise(224), model="swin_tiny_patch4_window7_224", model_kwargs=SWIN)


@situation("A", "Microsoft's Swin V2 at 256 px, 3 classes")
def _(place: Place) -> None:
    model = made("swinv2_tiny_window8_256", SWIN, num_classes=3)
    path = place.save({"model": layouts.swin(model.state_dict(), 64, 8)}, "swinv2.pth")
    place.same(path, model, noise(256), model="swinv2_tiny_window8_256", model_kwargs=SWIN)


@situation("A", "PVT v2, 5 classes")
def _(place: Place) -> None:
    model = made("pvt_v2_b0", PVT, num_classes=5)
    path = place.save(layouts.pvt_v2(model.state_dict()), "pvt_v2.pth")
    place.same(path, model, noise(224), model="pvt_v2_b0", model_kwargs=PVT)


@situation("A", "BEiT, fine-tuned, 37 classes, with the arguments of its script")
def _(place: Place) -> None:
    model = made("beit_base_patch16_224", VIT, num_classes=37)
    args = argparse.Namespace(model="beit_base_patch16_224", nb_classes=37, input_size=224, rel_pos_bias=True)
    path = place.save({"model": model.state_dict(), "epoch": 29, "scaler": {"scale": 65536.0}, "args": args})
    place.same(path, model, noise(224), model_kwargs=VIT)


@situation("A", "DINO, the teacher's backbone of a whole training checkpoint")
def _(place: Place) -> None:
    teacher, student = (made("vit_small_patch16_224", VIT, num_classes=0) for _ in range(2))
    head = layouts.dino_head(48)
    content: dict[str, Any] = {
        "student": {
            **layouts.prefixed(student.state_dict(), "module.backbone."),
            **layouts.prefixed(head, "module.head."),
        },
        "teacher": {**layouts.prefixed(teacher.state_dict(), "backbone."), **layouts.prefixed(head, "head.")},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": torch.zeros(1, 9)},
    }
    path = place.save(content, "checkpoint.pth")
    options: dict[str, Any] = {"model": "vit_small_patch16_224", "model_kwargs": VIT}
    place.refused(path, "several models", "state_key='teacher'", "state_key='student'", **options)
    place.same(path, teacher, noise(224), state_key="teacher", **options)


@situation("A", "DINOv2, the teacher of its training, blocks in chunks, DINO and iBOT heads")
def _(place: Place) -> None:
    model = made("vit_small_patch14_reg4_dinov2", VIT, num_classes=0, img_size=98)
    weights = layouts.prefixed(layouts.dinov2(model.state_dict(), 2), "backbone.")
    heads = {name: layouts.prefixed(layouts.dino_head(48), f"{name}.") for name in ("dino_head", "ibot_head")}
    path = place.save({"teacher": {**weights, **heads["dino_head"], **heads["ibot_head"]}}, "teacher_checkpoint.pth")
    place.same(path, model, noise(98), model="vit_small_patch14_reg4_dinov2", model_kwargs=VIT)
    place.hears("dino_head")


@situation("A", "MAE, pre-trained, with its decoder")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, num_classes=0)
    content = {"model": {**model.state_dict(), **layouts.mae_decoder(48)}}
    path = place.save(content, "mae_pretrain.pth")
    place.same(path, model, noise(224), model="vit_base_patch16_224", model_kwargs=VIT)
    place.hears("decoder")


@situation("A", "MAE, fine-tuned by its own script: average pooling, a name that timm does not have")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, num_classes=37, global_pool="avg")
    args = argparse.Namespace(model="vit_base_patch16", global_pool=True, nb_classes=37, input_size=224)
    path = place.save({"model": model.state_dict(), "args": args, "epoch": 99}, "checkpoint-99.pth")
    place.same(path, model, noise(224), model="vit_base_patch16_224", model_kwargs=VIT)


@situation("A", "EVA-02, 10 classes, under `module`")
def _(place: Place) -> None:
    model = made("eva02_tiny_patch14_224", VIT, num_classes=10)
    path = place.save({"module": model.state_dict()}, "mp_rank_00_model_states.pt")
    place.same(path, model, noise(224), model="eva02_tiny_patch14_224", model_kwargs=VIT)


class _Archive(nn.Module):
    """Modules and parameters by dotted names, as an archive of OpenAI's has them."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        below: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in weights.items():
            first, dot, rest = name.partition(".")
            if dot:
                below.setdefault(first, {})[rest] = tensor
            elif tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        for first, inner in below.items():
            self.add_module(first, _Archive(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@situation("A", "OpenAI's CLIP as its TorchScript archive")
def _(place: Place) -> None:
    model = made("vit_base_patch32_clip_quickgelu_224", VIT, num_classes=16)
    nn.init.zeros_(model.get_parameter("head.bias"))
    weights = layouts.openai_clip(model.state_dict())
    weights |= {name: torch.tensor(4) for name in ("input_resolution", "context_length", "vocab_size")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(_Archive(weights)), place / "ViT-B-32.pt")
    place.same(place / "ViT-B-32.pt", model, noise(224), model="vit_base_patch32_clip_224", model_kwargs=VIT)


@situation("A", "DeiT, distilled, both heads, 12 classes")
def _(place: Place) -> None:
    model = made("deit_tiny_distilled_patch16_224", VIT, num_classes=12)
    path = place.save({"model": model.state_dict(), "model_ema": {}, "args": argparse.Namespace(nb_classes=12)})
    place.same(path, model, noise(224), model="deit_tiny_distilled_patch16_224", model_kwargs=VIT)


@situation("A", "SAM: the image encoder beside prompt encoder and mask decoder")
def _(place: Place) -> None:
    small = {**VIT, "img_size": 256, "global_attn_indexes": (1,), "window_size": 7, "neck_chans": 16}
    model = made("samvit_base_patch16", small, num_classes=0)
    theirs = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("mlp.fc1", "mlp.lin1").replace("mlp.fc2", "mlp.lin2")
        theirs[f"image_encoder.{name}"] = tensor
    theirs |= {
        "prompt_encoder.not_a_point_embed.weight": torch.zeros(1, 16),
        "mask_decoder.iou_token.weight": torch.zeros(1, 16),
    }
    path = place.save(theirs, "sam_vit_b.pth")
    place.same(path, model, noise(256), model="samvit_base_patch16", model_kwargs=small)
    place.hears("mask_decoder")


@situation("A", "DINOv3's own file: storage tokens, rotary periods, masked biases")
def _(place: Place) -> None:
    model = made("vit_small_patch16_dinov3", VIT, num_classes=0, img_size=64)
    theirs: dict[str, torch.Tensor] = {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(4)}
    for name, tensor in model.state_dict().items():
        theirs[
            name.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        ] = tensor
    for i in range(2):
        theirs[f"blocks.{i}.attn.qkv.bias_mask"] = torch.zeros(144)
        theirs[f"blocks.{i}.attn.qkv.bias"] = torch.zeros(144)
    path = place.save(theirs, "dinov3_vits16_pretrain.pth")
    place.same(path, model, noise(64), model="vit_small_patch16_dinov3", model_kwargs=VIT)


@situation("A", "a head of 10 classes read as one of 37 because it was asked for, and so said")
def _(place: Place) -> None:
    model = made("vit_base_patch16_224", VIT, num_classes=10)
    path = place.save({"model": model.state_dict()})
    loaded = place.load(path, model="vit_base_patch16_224", model_kwargs=VIT, num_classes=37)
    assert loaded.model.num_classes == 37
    place.hears("10 classes is replaced by an untrained one of 37")
