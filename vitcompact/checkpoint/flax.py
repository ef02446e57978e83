"""Google's JAX checkpoints of Vision Transformers (`.npz`): read without trusting them, in the names of timm.

Layout: `_load_weights` in timm's `vision_transformer.py`. Kernels lie there as `(inputs, outputs)`, those of attention
by heads, `(inputs, heads, channels)`; big_vision's files number the parts of a block otherwise, may have all blocks in
one array, and bfloat16 in arrays of no type.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitcompact.checkpoint.claims import check_number
from vitcompact.checkpoint.quiet import first_line
from vitcompact.errors import CheckpointError

SUFFIX = ".npz"
_PREFIX = re.compile(r"((?:opt/target/|target/|params/(?:img/)?)?)embedding/kernel")
_BLOCK = re.compile(r"Transformer/encoderblock(?:_(\d+))?/")
_SLACK_BYTES = 1 << 26
_WHOLE = {
    "cls": "cls_token",
    "embedding": "patch_embed.proj",
    "pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm": "norm",
    "pre_logits": "pre_logits.fc",
    "head": "head",
    "MAPHead_0/probe": "attn_pool.latent",
    "MAPHead_0/LayerNorm_0": "attn_pool.norm",
    "MAPHead_0/MlpBlock_0/Dense_0": "attn_pool.mlp.fc1",
    "MAPHead_0/MlpBlock_0/Dense_1": "attn_pool.mlp.fc2",
}
_OF_A_BLOCK = {
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "LayerNorm_2": "norm2",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
}
"""Numbers of the original's names (second norm 2, MLP 3) and of big_vision's (1, 0)."""
_ATTENTION = re.compile(r"(.*)MultiHeadDotProductAttention_[01]")
_VALUES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def read_flax(path: Path) -> dict[str, Tensor]:
    """The weights of a ViT in a `.npz` of Google's, in timm's names.

    Raises:
        CheckpointError: not such an archive, damaged, larger than it may be, or of another kind of model.
    """
    arrays = _arrays(path)
    prefix = next((found[1] for name in arrays if (found := _PREFIX.fullmatch(name))), "")
    of_model = {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
    if "embedding/kernel" not in of_model or not any(map(_BLOCK.match, of_model)):
        raise CheckpointError(
            f"{path} is no ViT of Google's (arrays: {', '.join(sorted(arrays)[:4]) or 'none'}); of .npz files only"
            " those are read: save others as a state dict (safetensors)"
        )
    if "conv_root/kernel" in of_model:
        raise CheckpointError(f"{path} is a ViT behind a ResNet, not read from .npz: give timm's checkpoint of it")
    try:
        return {name: tensor.contiguous() for name, tensor in _in_timm_names(of_model)}
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        told = f"{path} is damaged: its arrays are not those of one ViT ({first_line(error)})"
        raise CheckpointError(told) from error


def _arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of an archive that claims no more than it has."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            check_number(len(entries), str(path))
            unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
            if unpacked > 2 * size + _SLACK_BYTES:
                raise CheckpointError(f"{path} is refused: {size:,} bytes that unpack to {unpacked:,}")
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is not an archive of arrays (numpy.savez), or is damaged: {first_line(error)}"
        ) from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    """One array, read only if it is as large as its header claims."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds Python objects, which are code")
        raw = stream.read()
    if not raw or np.prod(shape, dtype=object) * dtype.itemsize != len(raw):
        raise ValueError(f"{entry.filename} is not as large as it says")
    if dtype == np.dtype("V2"):  # how numpy writes bfloat16
        return torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).reshape(shape)
    values = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(dtype.newbyteorder("="), order="C"))


def _in_timm_names(arrays: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    attention: dict[str, dict[str, Tensor]] = {}
    for name, value in _by_block(arrays):
        where, _, what = name.rpartition("/")
        head, _, part = where.rpartition("/")
        if found := _ATTENTION.fullmatch(head):
            attention.setdefault(found[1], {})[f"{part}/{what}"] = value
        elif name in _WHOLE:
            yield _WHOLE[name], value
        elif where in _WHOLE:
            yield f"{_WHOLE[where]}.{_VALUES[what]}", _turned(value)
        else:
            block = _BLOCK.match(where)
            known = _OF_A_BLOCK.get(where[block.end() :]) if block else None
            yield (f"blocks.{block[1]}.{known}.{_VALUES[what]}", _turned(value)) if block and known else (name, value)
    for where, parts in attention.items():
        yield from _attention(where, parts)


def _by_block(arrays: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """With the number of the block in every name, and a row of positions with its batch dimension."""
    for name, value in arrays.items():
        block = _BLOCK.match(name)
        if block and block[1] is None:
            check_number(len(value), "an array of all blocks")
            for index, own in enumerate(value):
                yield f"{name[: block.end() - 1]}_{index}{name[block.end() - 1 :]}", own
        else:
            yield name, value


def _turned(value: Tensor) -> Tensor:
    """A kernel as torch has it: outputs first."""
    return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.mT if value.ndim == 2 else value


def _attention(where: str, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Query, key and value in one; a pooling layer has its queries apart."""
    block = _BLOCK.match(where)
    to, together = (f"blocks.{block[1]}.attn", "qkv") if block else ("attn_pool", "kv")
    names = {"q": "query", "k": "key", "v": "value"}

    def rows(letters: str, what: str) -> Tensor:
        kinds = [parts[f"{names[letter]}/{what}"] for letter in letters]
        return torch.cat([kind.flatten(1).mT if what == "kernel" else kind.flatten() for kind in kinds])

    for group in (together,) if block else ("q", together):
        yield f"{to}.{group}.weight", rows(group, "kernel")
        yield f"{to}.{group}.bias", rows(group, "bias")
    yield f"{to}.proj.weight", parts["out/kernel"].flatten(0, -2).mT
    yield f"{to}.proj.bias", parts["out/bias"]
