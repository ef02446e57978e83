"""Every family's small model, the pair and a budget, as ONNX and `.pt2`: equal to PyTorch at batch 1, 3 and 8."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import vitcompact
from tests.conformance.every import CASES, METHODS, build, compacted
from tests.conformance.suite import Case
from vitcompact.folding.verify import perturbed
from vitcompact.planning.request import OutOfReach
from vitcompact.plans.schema import Plan

TOLERANCE = 1e-4
PAIR_ALONE = ("botnet", "halonet")
"""Of which no budget takes anything: docs/families.md says why."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_family(case: Case, method: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    model, images = build(case), torch.randn(16, 3, case.size, case.size)
    if method == "budget" and case.id in PAIR_ALONE:
        with pytest.raises(OutOfReach):
            compacted(model, images, method)
        return
    check(compacted(model, images, method), tmp_path)


@pytest.mark.parametrize("terms", [("identity", "mean"), ("conv",)], ids=",".join)
def test_paths_beside_the_map(terms: tuple[str, ...], tmp_path: Path) -> None:
    model = perturbed(timm.create_model("test_vit", num_classes=7, img_size=64), seed=1).eval()
    images = torch.randn(16, 3, 64, 64)
    check(vitcompact.fold(vitcompact.convert(model, images=images, ratio=0.5, terms=terms)), tmp_path)


@pytest.mark.parametrize("name", ["vit_small_cifar10", "pvt_v2_b0_cifar10", "vit_small_features"])
def test_real_checkpoint(shared_dir: Path, name: str, tmp_path: Path) -> None:
    model = vitcompact.load_source(str(shared_dir / "models" / name)).model
    check(vitcompact.fold(vitcompact.convert(model, ratio=0.5, rank_ratio=0.5)), tmp_path)


def test_merged_tokens(tmp_path: Path) -> None:
    """Ranking and gathering have ONNX forms."""
    model = perturbed(timm.create_model("test_vit", num_classes=7, img_size=64), seed=1).eval()
    check(vitcompact.fold(model, merge_tokens=2), tmp_path)


def test_tokens_merged_by_output_sensitivity(tmp_path: Path) -> None:
    model = perturbed(timm.create_model("test_vit", num_classes=7, img_size=64), seed=1).eval()
    images = torch.randn(16, 3, 64, 64)
    plan = Plan((), merge_tokens=(2,) * len(model.get_submodule("blocks")), merge_by="sensitivity")  # type: ignore[arg-type]
    check(vitcompact.fold(vitcompact.convert(model, images=images, plan=plan), images=images), tmp_path)


def check(folded: nn.Module, folder: Path) -> None:
    for name in ("model.onnx", "model.pt2"):
        result = vitcompact.export(folded, folder / name)
        assert result.rel_diff is not None
        assert result.rel_diff <= TOLERANCE
        assert result.agreement == 1.0
