"""What is written keeps the number format of what was read, and tables say how large files become."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vitcompact.checkpoint import load_source
from vitcompact.checkpoint.stored import dtype_of, stored_dtype

from .commands import SMALL, VIT, Run

NAMES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def written(path: Path) -> set[torch.dtype]:
    tensors = safetensors.torch.load_file(path / "model.safetensors").values()
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def stored_as(weights: Path, dtype: torch.dtype, path: Path) -> Path:
    """The same weights in another number format and kind of file."""
    tensors = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load_file(weights).items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "optimizer": {"state": torch.zeros(1000)}}, path)
    return path


@pytest.mark.parametrize(("name", "file"), [("float16", "vit.safetensors"), ("bfloat16", "vit.pth.tar")])
def test_every_stage_keeps_the_format_of_its_source(
    name: str, file: str, run: Run, weights: Path, images: Path, tmp_path: Path
) -> None:
    source, space = stored_as(weights, NAMES[name], tmp_path / file), tmp_path / "vitcompact-out"
    converted = run("convert", source, *VIT, "--data-dir", images, "--ratio", "0.5", "--json")
    document = json.loads(converted.out)
    assert written(space / "converted") == {NAMES[name]}
    assert document["bytes"]["after"] < document["bytes"]["before"] == pytest.approx(source.stat().st_size, rel=0.05)
    assert run("finetune", "--steps", "1", "-b", "8").code == 0
    assert written(space / "finetuned") == {NAMES[name]}
    folded = run("fold")
    assert written(space / "folded") == {NAMES[name]}
    assert "file size" in folded.out
    assert run("fold", "--dtype", "float32", "--overwrite").code == 0
    assert written(space / "folded") == {torch.float32}


def test_analyze_and_convert_show_the_size_of_files(run: Run, weights: Path, tmp_path: Path) -> None:
    half = stored_as(weights, torch.float16, tmp_path / "half.safetensors")
    for words in (("analyze", half), ("convert", half, "out"), ("convert", "test_vit", *SMALL, "random")):
        shown = run(*words, *(() if "test_vit" in words else VIT))
        assert shown.code == 0, shown.err
        row = next(line for line in shown.out.splitlines() if "file size" in line)
        assert row.count("kB") + row.count("MB") == 2
        assert "-" in row  # it becomes smaller
    assert written(tmp_path / "random") == {torch.float32}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"a": torch.zeros(9, dtype=torch.float16), "b": torch.zeros(2)}, torch.float16),
        ({"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(2)}, torch.bfloat16),
        ({"a": torch.zeros(2, dtype=torch.float16), "b": torch.zeros(9)}, torch.float32),
        ({"a": torch.zeros(9, dtype=torch.float64)}, torch.float32),
        ({"a": torch.zeros(9, dtype=torch.int64), "b": torch.zeros(2, dtype=torch.float16)}, torch.float16),
        ({"a": torch.zeros(9, dtype=torch.int64)}, torch.float32),
    ],
)
def test_the_format_is_that_of_most_numbers(
    stored: dict[str, torch.Tensor], expected: torch.dtype, tmp_path: Path
) -> None:
    safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    torch.save({"model": stored}, tmp_path / "w.pth")
    assert stored_dtype(tmp_path / "w.safetensors") == expected
    assert stored_dtype(tmp_path / "w.pth") == expected
    assert dtype_of(stored) == expected


def test_directories_say_it_too(job: Path) -> None:
    assert load_source(str(job / "folded")).dtype == torch.float32
