"""The honest files that hostile ones are made of, each made when it is first asked for."""

from __future__ import annotations

import io
import json
import os
import shutil
import traceback
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vitcompact
from tests.checkpoint.foreign import test_open_clip
from tests.checkpoint.google import google_layout
from tests.cli.commands import write_images
from vitcompact.checkpoint import SourceOptions
from vitcompact.cli.app import main

ARGS: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 16}
ARCHITECTURE = "vit_tiny_patch16_224"
OPTIONS = SourceOptions(model=ARCHITECTURE, model_kwargs=ARGS)
"""How the bare weights file is read."""
HALF = ("--ratio", "0.5")


def _apart(work: Callable[[], object]) -> None:
    """Do it in a child: torch computes gradients in no process whose parent has, and runtimes leave threads."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "an honest file could not be made"


class _Scripted(nn.Module):
    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ParameterList([nn.Parameter(tensor) for tensor in list(state.values())[:3]])

    def forward(self, x: Tensor) -> Tensor:
        return x


class Seeds:
    """Honest files in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def model(self) -> nn.Module:
        """A tiny ViT of one block for images of 32 pixels and two classes."""
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(ARCHITECTURE, num_classes=2, img_size=32, **ARGS).eval()
        return model

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """Its weights."""
        return {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}

    @cached_property
    def weights(self) -> Path:
        """The same in a file."""
        save_file(self.state, self.root / "weights.safetensors")
        return self.root / "weights.safetensors"

    @cached_property
    def google(self) -> dict[str, Any]:
        """The same as arrays of Google's."""
        return google_layout(self.model)

    @cached_property
    def script(self) -> bytes:
        """A TorchScript archive."""
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(_Scripted(self.state), torch.ones(1)), buffer)
        return buffer.getvalue()

    @cached_property
    def timm_directory(self) -> Path:
        """A directory in timm's hub layout."""
        folder = self.root / "timm"
        folder.mkdir()
        shutil.copy(self.weights, folder / "model.safetensors")
        cfg = {
            "input_size": [3, 32, 32],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        }
        cfg |= {"num_classes": 2, "first_conv": "patch_embed.proj", "classifier": "head", "label_names": ["ant", "bee"]}
        cfg |= {"crop_mode": "center", "pool_size": None, "fixed_input_size": True}
        args = {**ARGS, "img_size": 32, "global_pool": "token"}
        config = {
            "architecture": ARCHITECTURE,
            "num_classes": 2,
            "num_features": 32,
            "pretrained_cfg": cfg,
            "model_args": args,
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    @cached_property
    def converted(self) -> Path:
        """A directory of ours in training form."""
        model = vitcompact.load(self.timm_directory)
        return vitcompact.save(vitcompact.convert(model, ratio=0.5, rank_ratio=0.25), self.root / "converted")

    @cached_property
    def images(self) -> Path:
        """A folder of images, `train` and `val`."""
        write_images(self.root / "images" / "train", 4, 32)
        write_images(self.root / "images" / "val", 2, 32)
        return self.root / "images"

    @cached_property
    def tensor(self) -> Tensor:
        """Images as a batch."""
        return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    @cached_property
    def curves(self) -> Path:
        """The curves of the model on these images."""
        model, images, path = self.model, self.tensor, self.root / "curves.json"
        _apart(lambda: vitcompact.plan(model, images=images, target_macs=0.9, curves=vitcompact.Curves(path)))
        return path

    @cached_property
    def job(self) -> Path:
        """A folder in which all four verbs ran, with its workspace."""
        folder = self.root / "job"
        folder.mkdir()
        images, source = self.images, self.timm_directory

        def verbs() -> None:
            os.chdir(folder)
            data = ("--data-dir", str(images))
            codes = [main(["analyze", str(source), *data, "--method", "pair", "-q"]), main(["convert", *HALF, "-q"])]
            codes += [main(["finetune", "--steps", "2", "-b", "4", "-q"]), main(["fold", "-q"])]
            assert not any(codes), codes

        _apart(verbs)
        return folder

    @cached_property
    def transformers(self) -> dict[str, Path]:
        """Directories of transformers, by their model's kind; empty where it is not installed."""
        try:
            from tests.checkpoint.foreign import test_transformers
        except BaseException:  # pytest skips by an exception of its own
            return {}
        found = {}
        for name in ("vit", "dinov2 registers", "dinov3", "beit", "swin", "clip", "siglip", "timm wrapper"):
            path = self.root / "transformers" / name.replace(" ", "-")
            test_transformers.saved(name, path)
            found[name] = path
        return found

    @cached_property
    def open_clip(self) -> Path:
        """A directory of open_clip."""
        path = self.root / "open_clip"
        path.mkdir()
        test_open_clip.write(path, test_open_clip.weights(), test_open_clip.OWN)
        return path

    def exported(self, suffix: str) -> Path:
        """A file for another runtime."""
        path = self.root / f"exported{suffix}"
        if not path.exists():
            model = self.model
            _apart(lambda: vitcompact.export(model, path))  # no runtime's threads in processes that are forked
        return path

    @cached_property
    def five_channels(self) -> nn.Module:
        """A model of five channels."""
        model: nn.Module = timm.create_model(ARCHITECTURE, num_classes=2, img_size=32, in_chans=5, **ARGS).eval()
        return model

    def shards(self, folder: Path) -> Path:
        """The weights in two files, with their index, in `folder`."""
        names, both = list(self.state), [folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        parts = names[::2], names[1::2]
        for path, part in zip(both, parts, strict=True):
            save_file({name: self.state[name] for name in part}, path)
        where = {name: path.name for path, part in zip(both, parts, strict=True) for name in part}
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": where}))
        return index

    def loaded(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a safetensors file."""
        return load_file(path)
