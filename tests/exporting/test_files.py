"""Exported files: equal to PyTorch at any batch size, self-describing, self-contained."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.data import resolve_input
from vitcompact.exporting import ExportedModel, open_exported
from vitcompact.models.cost import count


@pytest.fixture(scope="module", params=["onnx_file", "pt2_file"])
def opened(request: pytest.FixtureRequest) -> ExportedModel:
    return open_exported(request.getfixturevalue(request.param))


@pytest.mark.parametrize("batch", [1, 2, 5, 11])
def test_any_batch_is_equal(opened: ExportedModel, folded: nn.Module, batch: int) -> None:
    """Other batches than those that were compared before the file got its name."""
    images = torch.randn(batch, 3, 32, 32)
    wanted, got = folded(images), opened(images)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_file_describes_itself(opened: ExportedModel, folded: nn.Module) -> None:
    told = opened.description
    cost = count(folded, (3, 32, 32))
    assert (told.architecture, told.num_classes) == ("vit_tiny_patch16_224", 4)
    assert told.class_names == ("bee", "cat", "dog", "emu")
    assert told.input == resolve_input(folded)
    assert told.plan == {"hallucinate": 2, "factorize": 2}
    assert (told.params, told.macs, told.precision) == (cost.params, cost.macs, "float32")


def test_what_evaluates_models_takes_files(opened: ExportedModel, folded: nn.Module, images: Tensor) -> None:
    labels = folded(images).argmax(dim=1)
    result = vitcompact.evaluate(opened, images, labels, reference=folded)
    assert (result.top1, result.agreement) == (100.0, 1.0)
    assert result.cosine == pytest.approx(1.0, abs=1e-6)


def test_images_of_another_size_are_refused(opened: ExportedModel) -> None:
    with pytest.raises(vitcompact.DataError, match=r"3 x 48 x 48, .* was exported for 3 x 32 x 32"):
        opened(torch.zeros(1, 3, 48, 48))


def test_copies_share_the_runtime(opened: ExportedModel) -> None:
    assert copy.deepcopy(opened) is opened


def test_nothing_of_this_machine_is_in_a_file(onnx_file: Path, pt2_file: Path) -> None:
    """The `.pt2` is a zip whose members are stored as they are."""
    for path in (onnx_file, pt2_file):
        for package in (vitcompact, timm, torch):
            assert str(Path(str(package.__file__)).parent).encode() not in path.read_bytes()
        assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_names_axes_and_weights_of_onnx(onnx_file: Path, folded: nn.Module) -> None:
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    (given,), (result,) = model.graph.input, model.graph.output
    assert (given.name, result.name) == ("images", "outputs")
    for value in (given, result):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.opset_import[0].version == 18
    large = [each.raw_data for each in model.graph.initializer if len(each.raw_data) > 256]
    assert len(set(large)) == len(large)
    stored = sum(len(each.raw_data) for each in model.graph.initializer)
    weights = 4 * sum(p.numel() for p in folded.parameters())
    assert weights <= stored < 1.02 * weights
