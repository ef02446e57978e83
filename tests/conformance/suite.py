"""What every family has to pass: inherit `ConformanceSuite` and list the family's models.

Each test starts from weights that are perturbed, so that no norm is one, no bias zero and no branch silent by accident.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from tests.attached import plan_of
from vitcompact.data import resolve_input
from vitcompact.folding.verify import perturbed
from vitcompact.models import inspect
from vitcompact.models.cost import count
from vitcompact.operators import OPERATORS, Operator
from vitcompact.planning.selection import Selection
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.training import TrainOptions

TimmModel = Any
"""A model of any family: `nn.Module` with the methods that timm gives to all of its models."""


@dataclass(frozen=True)
class Case:
    """A timm model small enough for a fast test.

    `size` is its image side; `other_size` one that it also takes, after `set_input_size` where it has that (None:
    none). `checkpointing`: whether the model can recompute activations. `features`: stages to extract.
    `compiler`: who takes the captured graph, `eager` as it is or `aot_eager` with its gradients; one model of a class
    passes the latter, and all of them with `-m sweep`. `stage`: `broad` or `sweep` where another of its kind stands for
    it without that mark.
    """

    id: str
    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: int = 64
    other_size: int | None = 96
    compiler: str = "eager"
    checkpointing: bool = True
    features: tuple[int, int] = (0, 2)
    stage: str = ""


def check_operator(operator: Operator[Any], model: nn.Module, images: Tensor, out: Path) -> bool:
    """One operator on every layer that allows it: built, trained form perturbed, folded, reloaded; False: on none."""
    layers = []
    for site in inspect(model).sites:
        sizes = operator.sizes(model, site) if site.kind == operator.kind else []
        if sizes:
            spec = operator.choose_from_weights(model, site, sizes[len(sizes) // 2], Selection(branches=1))
            layers.append(LayerPlan(site.name, site.kind, (spec,)))
    if not layers:
        return False
    moved = perturbed(vitcompact.convert(model, plan=Plan(tuple(layers))), seed=5)
    folded = vitcompact.fold(moved)
    wanted = folded(images)
    assert not torch.equal(wanted, model(images)), operator.name
    assert torch.equal(vitcompact.load(vitcompact.save(folded, out))(images), wanted), operator.name
    assert {spec.op for layer in plan_of(folded).layers for spec in layer.operators} == {operator.name}
    return True


def check_compiled(model: nn.Module, images: Tensor, backend: str) -> None:
    """The model is one graph without a break, which computes the same."""
    torch._dynamo.reset()  # else the guards of every model before are tried first
    wanted = model(images)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert (compiled(images) - wanted).abs().max() <= 2e-4 * wanted.abs().max()


SWEPT = (
    "test_every_operator_by_itself",
    "test_compile",
    "test_the_default_form_goes_all_the_way",
    "test_analysis_predicts_the_cost",
)
"""Tests of seconds: the first model of each class goes through them, with `-m broad`, and all with `-m sweep`."""


class ShortSuite:
    """Convert, train a step, perturb, fold, reload through timm."""

    cases: tuple[Case, ...] = ()
    quick = False
    """Whether the tests of seconds are among those without `-m broad`: those of one class are."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            swept = metafunc.function.__name__ in SWEPT
            placed = any(map(metafunc.definition.get_closest_marker, ("slow", "sweep")))
            found = []
            for place, case in enumerate(self.cases):
                later = "sweep" if swept and place else case.stage or ("broad" if swept and not self.quick else "")
                marks = [getattr(pytest.mark, later)] if later and not placed else []
                found.append(pytest.param(case, id=case.id, marks=marks))
            metafunc.parametrize("case", found, scope="class")

    def test_outputs_depend_on_the_image(self, original: nn.Module, trained: nn.Module, images: Tensor) -> None:
        """Else nothing below could fail."""
        for model in (original, trained):
            got = model(images)
            assert got.std(dim=0).mean() > 0.02 * got.abs().max(), float(got.std(dim=0).mean() / got.abs().max())

    def test_every_layer_is_compacted(self, original: nn.Module, folded: nn.Module) -> None:
        """Heads of every layer that has some, and every FFN that a product of two would make smaller."""
        layers, anatomy = plan_of(folded).layers, inspect(original)
        assert {layer.name for layer in layers if layer.kind == "attention"} == {s.name for s in anatomy.attention}
        assert bool(anatomy.ffn) == any(layer.kind == "ffn" for layer in layers)

    def test_fold_is_equal_and_idempotent(self, trained: nn.Module, folded: nn.Module, images: Tensor) -> None:
        wanted, got = trained(images), folded(images)
        assert (got - wanted).abs().max() <= 2e-4 * wanted.abs().max()
        again = vitcompact.fold(folded)
        assert all(torch.equal(value, folded.state_dict()[key]) for key, value in again.state_dict().items())
        assert again.vitcompact_plan == folded.vitcompact_plan
        assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in trained.parameters())

    def test_reload_is_bit_exact(self, folded: nn.Module, trained: nn.Module, images: Tensor, tmp_path: Path) -> None:
        for form, model in (("folded", folded), ("training", trained)):
            out = vitcompact.save(model, tmp_path / form)
            wanted = model(images)
            assert torch.equal(vitcompact.load(out)(images), wanted)
            assert torch.equal(timm.create_model(f"local-dir:{out}", pretrained=True).eval()(images), wanted)
            assert not torch.equal(wanted, timm.create_model(f"local-dir:{out}").eval()(images))


class ConformanceSuite(ShortSuite):
    """The same, and everything that downstream code calls."""

    def test_closer_than_copying(self, original: nn.Module, compact: nn.Module, images: Tensor) -> None:
        naive = vitcompact.convert(original, images=images, init="svd", hallucinate="copy")
        wanted = original(images)
        assert (compact(images) - wanted).norm() < (naive(images) - wanted).norm()

    def test_analysis_predicts_the_cost(self, original: nn.Module, folded: nn.Module, images: Tensor) -> None:
        report = vitcompact.analyze(original, images)
        size = resolve_input(folded).input_size
        assert report.predicted.macs == count(folded, size).macs < report.cost.macs
        assert len(report.layers) == sum(layer.kind == "attention" for layer in plan_of(folded).layers)
        assert all(layer.copy_error is not None and 0 < layer.copy_error < float("inf") for layer in report.layers)

    def test_every_operator_by_itself(self, original: nn.Module, images: Tensor, tmp_path: Path) -> None:
        applied = [check_operator(each, original, images, tmp_path / name) for name, each in OPERATORS.items()]
        assert any(applied)

    def test_intermediates(self, original: TimmModel, folded: TimmModel, images: Tensor) -> None:
        final, features = folded.forward_intermediates(images)
        wanted_final, wanted = original.forward_intermediates(images)
        assert [f.shape for f in features] == [f.shape for f in wanted]
        assert final.shape == wanted_final.shape
        torch.testing.assert_close(folded.forward_features(images), final)

    def test_reset_classifier(self, folded: TimmModel, images: Tensor) -> None:
        model = copy.deepcopy(folded)
        model.reset_classifier(3)
        assert model(images).shape == (len(images), 3)

    def test_distillation_runs_and_moves_the_branches(
        self, original: nn.Module, compact: nn.Module, images: Tensor
    ) -> None:
        options = TrainOptions(steps=2, warmup_steps=0, amp=False)
        result = vitcompact.finetune(compact, original, images, options=options)
        assert min(result.branch_ratio.values()) > 0
        got = result.model(images)
        assert torch.isfinite(got).all()
        assert not torch.equal(got, compact(images))

    def test_the_default_form_goes_all_the_way(
        self, original: nn.Module, compact: nn.Module, images: Tensor, tmp_path: Path
    ) -> None:
        """Without branches: converted, trained, folded and read by timm."""
        converted = vitcompact.convert(original, images=images)
        torch.testing.assert_close(converted(images), compact(images))  # whose branches are silent
        result = vitcompact.finetune(
            converted, original, images, options=TrainOptions(steps=2, warmup_steps=0, amp=False)
        )
        assert not result.branch_ratio
        wanted = result.model(images)
        assert not torch.equal(wanted, converted(images))
        folded = vitcompact.fold(result.model)
        assert (folded(images) - wanted).abs().max() <= 2e-4 * wanted.abs().max()
        out = vitcompact.save(folded, tmp_path / "folded")
        again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        assert torch.equal(again(images), folded(images))

    def test_grad_checkpointing_changes_nothing(self, case: Case, trained: TimmModel, images: Tensor) -> None:
        if not case.checkpointing:
            pytest.skip("this model cannot recompute activations")
        ours = tuple(f"{layer.name}." for layer in plan_of(trained).layers)
        plain, saving = copy.deepcopy(trained).train(), copy.deepcopy(trained).train()
        saving.set_grad_checkpointing(True)
        for model in (plain, saving):
            model(images).square().mean().backward()
        for (name, first), second in zip(plain.named_parameters(), saving.parameters(), strict=True):
            torch.testing.assert_close(first.grad, second.grad, msg=name, rtol=1e-3, atol=1e-5)
        for (name, once), buffer in zip(plain.named_buffers(), saving.buffers(), strict=True):
            if name.startswith(ours):  # timm's own batch norms do see each batch twice
                torch.testing.assert_close(once, buffer, msg=f"{name} was updated twice")

    def test_bfloat16(self, folded: nn.Module, images: Tensor) -> None:
        got = copy.deepcopy(folded).bfloat16()(images.bfloat16()).float()
        wanted = folded(images)
        assert (got - wanted).norm() < 0.1 * wanted.norm()

    def test_other_image_size(self, case: Case, folded: TimmModel, tmp_path: Path) -> None:
        if case.other_size is None:
            pytest.skip("this model has one image size")
        model = copy.deepcopy(folded)
        if hasattr(model, "set_input_size"):
            model.set_input_size((case.other_size, case.other_size))
        images = torch.randn(2, 3, case.other_size, case.other_size)
        out = vitcompact.save(model, tmp_path / "resized")
        assert torch.equal(vitcompact.load(out)(images), model(images))

    def test_features_only(self, case: Case, folded: TimmModel, images: Tensor, tmp_path: Path) -> None:
        out = vitcompact.save(folded, tmp_path / "out")
        chosen = {"features_only": True, "out_indices": case.features}
        features = timm.create_model(f"local-dir:{out}", pretrained=True, **chosen).eval()
        plain = folded.forward_intermediates(images, indices=case.features, intermediates_only=True)
        try:
            wanted = folded.forward_intermediates(images, indices=case.features, norm=True, intermediates_only=True)
        except AssertionError:  # timm's Hiera has no norms to give
            wanted = plain
        got = [
            f.permute(0, 3, 1, 2) if f.shape != w.shape else f for f, w in zip(features(images), wanted, strict=True)
        ]
        assert [f.shape for f in got] == [w.shape for w in wanted]
        assert torch.equal(got[-1], wanted[-1]) or torch.equal(got[-1], plain[-1])

    def test_compile(self, case: Case, folded: nn.Module, images: Tensor) -> None:
        check_compiled(folded, images, case.compiler)

    @pytest.mark.sweep
    def test_compile_with_gradients(self, case: Case, folded: nn.Module, images: Tensor) -> None:
        if case.compiler == "aot_eager":
            pytest.skip("test_compile did that")
        check_compiled(folded, images, "aot_eager")

    @pytest.mark.slow
    def test_export(self, folded: nn.Module, images: Tensor, tmp_path: Path) -> None:
        """To a `.pt2` file and back, past the check that strangers' files go through."""
        path = vitcompact.export(folded, tmp_path / "folded.pt2").out
        wanted, got = folded(images), vitcompact.open_exported(path)(images)
        assert (got - wanted).abs().max() <= 2e-4 * wanted.abs().max()

    @pytest.mark.slow
    def test_a_budget(self, original: nn.Module, images: Tensor) -> None:
        """Every operator competes; the target is one that each of the small models can reach."""
        compact = vitcompact.convert(original, target_params=0.97, images=images)
        folded = vitcompact.fold(compact)
        kept, whole = (sum(p.numel() for p in model.parameters()) for model in (folded, original))
        assert kept <= 0.97 * whole
        wanted = compact(images)
        assert (folded(images) - wanted).abs().max() <= 2e-4 * wanted.abs().max()
