"""open_clip directories, against timm's own conversion of such weights and, where it is installed, the library."""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

import vitcompact
from vitcompact.checkpoint import load_source
from vitcompact.checkpoint.foreign.config import Config
from vitcompact.checkpoint.foreign.preprocessing import FILE, preparation
from vitcompact.errors import CheckpointError, UsageError

WIDTH, LAYERS = 64, 2
OWN = {"image_size": 32, "layers": LAYERS, "width": WIDTH, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}


def weights() -> dict[str, Tensor]:
    """Random weights of a tower by the library's names, with one tensor of a text tower."""
    block = {
        **{"ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,), "ln_2.weight": (WIDTH,), "ln_2.bias": (WIDTH,)},
        **{"attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,)},
        **{"attn.out_proj.weight": (WIDTH, WIDTH), "attn.out_proj.bias": (WIDTH,)},
        **{"mlp.c_fc.weight": (4 * WIDTH, WIDTH), "mlp.c_fc.bias": (4 * WIDTH,)},
        **{"mlp.c_proj.weight": (WIDTH, 4 * WIDTH), "mlp.c_proj.bias": (WIDTH,)},
    }
    shapes = {
        **{"class_embedding": (WIDTH,), "positional_embedding": (17, WIDTH), "proj": (WIDTH, 24)},
        **{"conv1.weight": (WIDTH, 3, 8, 8), "ln_pre.weight": (WIDTH,), "ln_pre.bias": (WIDTH,)},
        **{"ln_post.weight": (WIDTH,), "ln_post.bias": (WIDTH,)},
        **{f"transformer.resblocks.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()},
    }
    return {f"visual.{name}": torch.randn(shape) * 0.2 for name, shape in shapes.items()} | {
        "token_embedding.weight": torch.zeros(1)
    }


def write(path: Path, tensors: dict[str, Tensor], vision: dict[str, Any], **more: Any) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "open_clip_model.safetensors")
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **more},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear", "resize_mode": "squash"},
    }
    (path / "open_clip_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("quick", [False, True])
def test_outputs_are_those_of_timm_s_conversion(quick: bool, tmp_path: Path) -> None:
    tensors = weights()
    write(tmp_path, tensors, OWN, quick_gelu=quick)
    loaded = load_source(str(tmp_path)).model
    timm_s = timm.create_model(
        "vit_base_patch32_clip_quickgelu_224" if quick else "vit_base_patch32_clip_224",
        **{"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": 4, "num_classes": 24},
    ).eval()
    visual = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    timm_s.load_state_dict(checkpoint_filter_fn({f"visual.{n}": t for n, t in visual.items()}, timm_s))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(images), timm_s(images), rtol=0, atol=1e-5)
        again = vitcompact.load(vitcompact.save(loaded, tmp_path / "ours"))
        assert torch.equal(again(images), loaded(images))
    cfg: Any = loaded.pretrained_cfg
    assert (cfg["mean"], cfg["interpolation"], cfg["crop_mode"]) == ((0.1, 0.2, 0.3), "bilinear", "squash")


TOWERS: list[dict[str, Any]] = [
    OWN,
    {**OWN, "mlp_ratio": 2.0},
    {**OWN, "pool_type": "avg", "ls_init_value": 0.1},
    {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
]


@pytest.mark.parametrize("vision", TOWERS)
def test_outputs_are_those_of_the_library(vision: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="open_clip is not installed (the extra `foreign`)")
    library: Any = importlib.import_module("open_clip.model")
    width = 96 if vision.get("timm_proj") == "none" else 24
    theirs = library.CLIP(width, library.CLIPVisionCfg(**vision), library.CLIPTextCfg(**TEXT)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        write(tmp_path, theirs.state_dict(), vision)
        images = torch.randn(2, 3, vision["image_size"], vision["image_size"])
        wanted = theirs.encode_image(images)
        found = load_source(str(tmp_path)).model(images)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({**OWN, "attentional_pool": True}, "attentional_pool, which timm's ViT does not have"),
        ({**OWN, "layers": [3, 4, 6, 3]}, "a ResNet tower"),
        ({**OWN, "layers": 3}, r"missing from the file \(blocks\.2"),
        ({**OWN, "width": 32}, "is no open_clip model"),
        ({"timm_model_name": "vit_of_tomorrow"}, "unknown timm model 'vit_of_tomorrow'"),
    ],
)
def test_a_tower_that_cannot_be_read_is_one_clear_error(vision: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, weights(), vision)
    with pytest.raises(CheckpointError, match=message):
        load_source(str(tmp_path))


WRONG: tuple[Any, ...] = (7, 2.5, "x", True, [None], ["x", 1], {"x": []}, [float("nan")] * 3)


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_values_of_other_types_are_read_or_one_clear_error(wrong: Any, tmp_path: Path) -> None:
    prepare = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "longest"}
    write(tmp_path, weights(), OWN)
    path = tmp_path / "open_clip_config.json"
    honest = json.loads(path.read_text())
    for section, fields in (("preprocess_cfg", prepare), ("vision_cfg", OWN)):
        for name in fields:
            changed = {section: {**fields, name: wrong}}
            inner = changed if section == "preprocess_cfg" else {"model_cfg": {**honest["model_cfg"], **changed}}
            path.write_text(json.dumps({**honest, **inner}))
            with suppress(CheckpointError, UsageError):
                load_source(str(tmp_path))


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize("name", ["resample", "size", "crop_size", "crop_pct", "image_mean", "image_std", "do_resize"])
def test_preparation_of_other_types(name: str, wrong: Any, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"size": 32, "do_center_crop": True, name: wrong}))
    with suppress(CheckpointError):
        preparation(tmp_path)
    assert Config({"architectures": wrong}, "here").names("architectures") in ((), ("x",))
