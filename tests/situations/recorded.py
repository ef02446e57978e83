"""B. What a file or the files beside it record counts; options beat it, and both beat what weights imply."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml

import vitcompact

from .place import Place, RoughError, made, noise, situation

NAME = "test_vit"


def trained(
    place: Place, *, size: int | tuple[int, int] = 64, beside: bool = False, **recorded: Any
) -> tuple[Path, Any]:
    """What timm's training script leaves: the checkpoint and `args.yaml`."""
    model = made(NAME, num_classes=3, img_size=size, global_pool="avg", fc_norm=False)
    args = {"model": NAME, "num_classes": 3, "gp": "avg", "model_kwargs": {"fc_norm": False}, "img_size": None}
    args |= {"input_size": None, "mean": None, "std": None, "crop_pct": None, "interpolation": "", "pretrained": True}
    args |= {"in_chans": None, "class_map": "", "drop": 0.1, "lr": 5e-4, **recorded}
    content: dict[str, Any] = {
        "epoch": 9,
        "arch": NAME,
        "state_dict": made(NAME, num_classes=3, img_size=size).state_dict(),
    }
    content |= {"state_dict_ema": model.state_dict(), "optimizer": {"state": {}, "param_groups": []}, "version": 2}
    content |= {"metric": 81.5, "amp_scaler": {"scale": 65536.0}}
    if beside:
        (place / "args.yaml").write_text(yaml.safe_dump(args))
    else:
        content["args"] = argparse.Namespace(**args)
    return place.save(content, "model_best.pth.tar"), model


@situation("B", "timm's checkpoint: the averaged weights and the recorded pooling")
def _(place: Place) -> None:
    path, model = trained(place)
    place.same(path, model, noise(64))


@situation("B", "timm's `args.yaml` beside the file, with its own preparation of images")
def _(place: Place) -> None:
    path, model = trained(place, beside=True, mean=[0.1] * 3, std=[0.2] * 3, crop_pct=0.8, interpolation="bilinear")
    loaded = place.same(path, model, noise(64))
    cfg: Any = loaded.pretrained_cfg
    assert (cfg["mean"], cfg["std"], cfg["crop_pct"], cfg["interpolation"]) == ((0.1,) * 3, (0.2,) * 3, 0.8, "bilinear")
    place.hears("(recorded in args.yaml)")


@situation("B", "a recorded oblong `input_size`")
def _(place: Place) -> None:
    path, model = trained(place, size=(96, 64), input_size=[3, 96, 64])
    place.same(path, model, noise((96, 64)))


@situation("B", "options beat what is recorded")
def _(place: Place) -> None:
    path, _ = trained(place)
    again = place.load(path, global_pool="token").model
    assert again.global_pool == "token"
    wide = place.load(path, model_kwargs={"reg_tokens": 0}, in_chans=1).model
    assert wide(noise(64, 1)).shape == (2, 3)


@situation("B", "`--input-size C H W` as timm spells it, and `--gp`")
def _(place: Place) -> None:
    path, _ = trained(place)
    ran = place.vitcompact(
        "analyze", path, "--input-size", "3", "96", "64", "--gp", "avg", "--method", "pair", "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.result["macs"] > 0


@situation("B", "`--model-kwargs key=value key=value` as timm spells it")
def _(place: Place) -> None:
    model = made(NAME, num_classes=3, img_size=64, num_heads=4)
    path = place.save(model.state_dict())
    ran = place.vitcompact(
        "analyze", path, "--model", NAME, "--model-kwargs", "num_heads=4", "class_token=True", "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.result["layers"][0]["num_heads"] == 4


@situation("B", "timm's `config.json` beside a bare file: names of classes, and they stay")
def _(place: Place) -> None:
    model = made(NAME, num_classes=3, img_size=64)
    labels = ["ant", "bee", "cat"]
    document = {"architecture": NAME, "num_classes": 3, "label_names": labels, "pretrained_cfg": {"crop_pct": 0.7}}
    (place / "config.json").write_text(json.dumps(document))
    path = place.save(model.state_dict(), "pytorch_model.bin")
    loaded = place.same(path, model, noise(64))
    again = vitcompact.load(vitcompact.save(loaded, place / "out"))
    cfg: Any = again.pretrained_cfg
    assert (list(cfg["label_names"]), cfg["crop_pct"]) == (labels, 0.7)


@situation("B", "a class map beside the file names the classes")
def _(place: Place) -> None:
    (place / "classes.txt").write_text("ant\nbee\ncat\n")
    path, _ = trained(place, class_map="/home/me/classes.txt")
    cfg: Any = place.load(path).model.pretrained_cfg
    assert list(cfg["label_names"]) == ["ant", "bee", "cat"]


@situation("B", "a recorded name that timm does not have: candidates by shape")
def _(place: Place) -> None:
    model = made("vit_tiny_patch16_224", num_classes=7)
    args = argparse.Namespace(model="vit_tiny_patch16", nb_classes=7)
    path = place.save({"model": model.state_dict(), "args": args})
    message = place.refused(path, "vit_tiny_patch16'", "model='vit_tiny_patch16_224'")
    if len(message.splitlines()) > 12:
        raise RoughError(f"{len(message.splitlines())} lines of candidates")
    place.same(path, model, noise(224), model="vit_tiny_patch16_224")


@situation("B", "a fine-tuned model whose recorded name is a directory of ours")
def _(place: Place) -> None:
    model = made("vit_tiny_patch16_224", num_classes=7)
    path = place.save({"state_dict": model.state_dict(), "arch": "local-dir:vitcompact-out/folded"})
    place.refused(path, "local-dir:vitcompact-out/folded", "model='vit_tiny_patch16_224'")


@situation("B", "Lightning's hyper-parameters name the model")
def _(place: Place) -> None:
    model = made(NAME, num_classes=7, img_size=64)
    content = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "loops": {"fit_loop": {"state_dict": {}}},
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"model_name": NAME, "num_classes": 7, "lr": 1e-4},
    }
    path = place.save(content, "epoch=3-step=100.ckpt")
    place.same(path, model, noise(64))


@situation("B", "what was used is printed, and kept in `vitcompact.json`")
def _(place: Place) -> None:
    path, _ = trained(place)
    ran = place.vitcompact("convert", path, "out", "--method", "pair", "--json")
    assert ran.code == 0, ran.err
    assert "global_pool=avg" in " ".join(ran.err.split())
    record = json.loads((place / "out/vitcompact.json").read_text())
    assert record["provenance"]["read_as"]["global_pool"] == "avg"
