"""D. Prefixes and wrappings by what fits, several models by key, several files, TorchScript."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.checkpoint import layouts

from .place import VIT, Place, made, noise, shaken, situation

NAME = "vit_base_patch16_224"
BASE: dict[str, Any] = {"model": NAME, "model_kwargs": VIT}


def small(**kwargs: Any) -> nn.Module:
    return made(NAME, VIT, **{"img_size": 64, "num_classes": 10, **kwargs})


class Lit(nn.Module):
    """A module of a user: a compiled timm model, a loss with weights and a metric."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = torch.compile(model, backend="eager")
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))


@situation("D", "Lightning around `torch.compile`, a loss with weights beside it")
def _(place: Place) -> None:
    model = small()
    content = {
        "state_dict": Lit(model).state_dict(),
        "epoch": 1,
        "callbacks": {"EarlyStopping": {"best_score": torch.ones(())}},
    }
    place.same(place.save(content, "last.ckpt"), model, noise(64), **BASE)


@situation("D", "`nn.DataParallel`, weights under `net` beside the accuracy")
def _(place: Place) -> None:
    model = small()
    path = place.save({"net": nn.DataParallel(model).state_dict(), "acc": 93.1, "epoch": 199}, "ckpt.t7.pth")
    place.same(path, model, noise(64), **BASE)


@situation("D", "torch's averaged model of stochastic weight averaging")
def _(place: Place) -> None:
    model = small()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    place.same(place.save(averaged.state_dict()), model, noise(64), **BASE)


@situation("D", "BasicSR's `params` and `params_ema`")
def _(place: Place) -> None:
    model, other = small(), small()
    path = place.save({"params": other.state_dict(), "params_ema": model.state_dict()})
    place.refused(path, "state_key='params'", "state_key='params_ema'", **BASE)
    place.same(path, model, noise(64), state_key="params_ema", **BASE)


@situation("D", "MoCo v3: two encoders in one state dict, projection heads behind them")
def _(place: Place) -> None:
    model, other = small(num_classes=0), small(num_classes=0)
    head = {"head.0.weight": torch.zeros(8, 48), "head.1.weight": torch.ones(8), "head.3.weight": torch.zeros(8, 8)}
    content = {
        **layouts.prefixed({**other.state_dict(), **head}, "module.base_encoder."),
        **layouts.prefixed({**model.state_dict(), **head}, "module.momentum_encoder."),
        "module.predictor.0.weight": torch.zeros(8, 8),
    }
    path = place.save({"arch": NAME, "state_dict": content, "epoch": 300}, "vit-b-300ep.pth.tar")
    options: dict[str, Any] = {"model_kwargs": VIT}
    place.refused(path, "momentum_encoder'", **options)
    place.refused(path, "num_classes=0", state_key="momentum_encoder", **options)
    place.same(path, model, noise(64), state_key="momentum_encoder", num_classes=0, **options)


@situation("D", "peft's LoRA, not merged: the layers under `base_layer`, and adapters beside them")
def _(place: Place) -> None:
    peft = pytest.importorskip("peft")
    model = small()
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"]))
    shaken(tuned)
    path = place.save(tuned.state_dict())
    place.refused(path, "LoRA", "merge", **BASE)


@situation("D", "peft's LoRA, merged and unloaded")
def _(place: Place) -> None:
    peft = pytest.importorskip("peft")
    tuned = shaken(peft.get_peft_model(small(), peft.LoraConfig(r=2, target_modules=["qkv"])))
    merged = tuned.merge_and_unload().eval()
    path = place.save({f"base_model.model.{name}": tensor for name, tensor in merged.state_dict().items()})
    place.same(path, merged, noise(64), **BASE)


@situation("D", "a directory of peft's, adapters alone")
def _(place: Place) -> None:
    peft = pytest.importorskip("peft")
    tuned = shaken(peft.get_peft_model(small(), peft.LoraConfig(r=2, target_modules=["qkv"])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(str(place / "adapter"))
    place.refused(place / "adapter", "LoRA", "merge")
    place.refused(place / "adapter/adapter_model.safetensors", "LoRA", "merge", **BASE)


@situation("D", "FSDP and activation checkpointing in the names, bfloat16")
def _(place: Place) -> None:
    model = small().to(torch.bfloat16)
    weights = {
        f"_fsdp_wrapped_module.blocks._checkpoint_wrapped_module.{name[7:]}"
        if name.startswith("blocks.")
        else f"_fsdp_wrapped_module.{name}": tensor
        for name, tensor in model.state_dict().items()
    }
    loaded = place.load(place.save({"model": weights}), **BASE)
    assert loaded.dtype == torch.bfloat16
    images = noise(64)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model.float()(images))


@situation("D", "sharded safetensors with an index, and one of its shards")
def _(place: Place) -> None:
    model = small()
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    table = {name: names[i % 3] for i, name in enumerate(weights)}
    for part in names:
        save_file({name: weights[name] for name in weights if table[name] == part}, place / part)
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    for name in ("model.safetensors.index.json", names[2]):
        place.same(place / name, model, noise(64), **BASE)


@situation("D", "sharded `pytorch_model.bin` with an index")
def _(place: Place) -> None:
    model = small()
    weights = model.state_dict()
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    table = {name: names[i % 2] for i, name in enumerate(weights)}
    for part in names:
        torch.save({name: weights[name] for name in weights if table[name] == part}, place / part)
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    place.same(place / names[0], model, noise(64), **BASE)


@situation("D", "a traced TorchScript model")
def _(place: Place) -> None:
    model = small()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, noise(64)), place / "traced.pt")
    place.same(place / "traced.pt", model, noise(64), **BASE)


@situation("D", "fastai: the body as `0.model`, its head of several layers as `1`")
def _(place: Place) -> None:
    model = small(num_classes=0)
    head = {"1.2.weight": torch.ones(96), "1.4.weight": torch.zeros(16, 96), "1.8.weight": torch.zeros(10, 16)}
    path = place.save({"model": {**layouts.prefixed(model.state_dict(), "0.model."), **head}, "opt": {"state": []}})
    place.same(path, model, noise(64), **BASE)
    place.hears("left out")


@situation("D", "RobustBench: a normalising layer before the model")
def _(place: Place) -> None:
    model = small()
    weights = {"normalize.mean": torch.zeros(1, 3, 1, 1), "normalize.std": torch.ones(1, 3, 1, 1)}
    path = place.save({**weights, **layouts.prefixed(model.state_dict(), "model.")})
    place.same(path, model, noise(64), **BASE)
    place.hears("normalize")


@situation("D", "OpenMMLab's names, which timm does not have")
def _(place: Place) -> None:
    weights: dict[str, Tensor] = {}
    for name, tensor in small().state_dict().items():
        name = (
            name.replace("blocks.", "layers.")
            .replace("norm1", "ln1")
            .replace("norm2", "ln2")
            .replace("mlp.fc1", "ffn.layers.0.0")
        )
        weights[
            f"backbone.{name.replace('mlp.fc2', 'ffn.layers.1').replace('patch_embed.proj', 'patch_embed.projection')}"
        ] = tensor
    path = place.save({"meta": {"mmcls_version": "0.25.0"}, "state_dict": weights})
    place.refused(path, "OpenMMLab", "or timm's", **BASE)
