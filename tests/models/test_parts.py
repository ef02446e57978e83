"""What each adapter says about a layer, put together again with every head kept, is the layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

import vitcompact
from tests import narrow_nextvit
from tests.attached import parity_of, plan_of
from tests.conformance.cases import CASES
from vitcompact.folding.verify import perturbed
from vitcompact.layers.attention import HeadLayout
from vitcompact.models import family_named, inspect
from vitcompact.models.cores import build_core, whole_core
from vitcompact.models.layer_scale import output_scale
from vitcompact.operators.hallucinate import HallucinateSpec

HIERARCHY = {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (2, 2, 3, 4)}
WINDOWS = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4)}
ROPE = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 4}
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "plain": ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 1}, (64, 64)),
    "pvt_v2": ("pvt_v2_b0", HIERARCHY, (64, 96)),
    "pvt_v2_linear": ("pvt_v2_b2_li", HIERARCHY, (64, 96)),
    "twins_global": ("twins_pcpvt_small", {**HIERARCHY, "img_size": 64}, (64, 96)),
    "twins_local": ("twins_svt_small", {**HIERARCHY, "depths": (2, 2, 2, 1), "img_size": 96}, (96, 64)),
    "nextvit": (narrow_nextvit.NAME, {}, (64, 96)),
    "nextvit_whole": ("nextvit_small", {"depths": (1, 1, 5, 1)}, (64, 96)),
    "swin": ("swin_tiny_patch4_window7_224", WINDOWS, (64, 64)),
    "swin_v2": ("swinv2_tiny_window8_256", WINDOWS, (64, 64)),
    "eva_fused": ("eva02_tiny_patch14_224", {**ROPE, "img_size": 56, "qkv_fused": True}, (56, 56)),
    "eva_split": ("eva02_base_patch14_224", {**ROPE, "img_size": 56, "scale_attn_inner": True}, (56, 56)),
    "dinov3": ("vit_small_patch16_dinov3", {**ROPE, "qk_norm": True}, (64, 64)),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", ROPE, (64, 64)),
    "pe": ("vit_pe_core_tiny_patch16_384", ROPE, (64, 64)),
    "rope_split": ("vit_small_patch16_rope_224", {**ROPE, "attn_type": "rope", "qkv_fused": False}, (64, 64)),
    "beit": ("beit_base_patch16_224", ROPE, (64, 64)),
    "beit_shared": ("beit_base_patch16_224", {**ROPE, "use_shared_rel_pos_bias": True}, (64, 64)),
    "visformer": ("visformer_tiny", {"embed_dim": 48, "depth": (0, 2, 1), "img_size": 64}, (64, 64)),
}


MODELS |= {case.id: (case.name, case.kwargs, (64, 64)) for case in CASES}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    timm_name, kwargs, _ = MODELS[name]
    return perturbed(timm.create_model(timm_name, num_classes=3, **kwargs).eval(), seed=1)


@torch.no_grad()
def calls(model: nn.Module, images: Tensor) -> dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]]:
    """Arguments and output of every attention site in one forward pass."""
    seen = {}

    def keep(name: str) -> Any:
        return lambda _, args, kwargs, out: seen.update({name: (args, kwargs, out)})

    sites = inspect(model).attention
    handles = [model.get_submodule(s.name).register_forward_hook(keep(s.name), with_kwargs=True) for s in sites]
    model(images)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(sites) > 0
    return seen


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_whole_core_is_the_original_layer(name: str) -> None:
    model = model_of(name)
    seen = calls(model, torch.randn(3, 3, *MODELS[name][2]))
    for site in inspect(model).attention:
        core = whole_core(model, site)
        args, kwargs, wanted = seen[site.name]
        if site.scale is not None:
            holder, _, scale = site.scale.rpartition(".")
            gamma = getattr(model.get_submodule(holder), scale)
            gamma = getattr(gamma, "gamma", gamma)
            wanted = wanted * (gamma if site.channel_dim == -1 else gamma[:, None, None])
        got = core(*args, **kwargs)
        if isinstance(wanted, tuple):  # the tokens and their grid
            assert got[1] == tuple(wanted[1])
            got, wanted = got[0], wanted[0]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["swin", "swin_v2", "beit"])
@torch.no_grad()
def test_another_window_size_changes_the_bias_as_the_original_does(name: str) -> None:
    """The core of the layer before it was resized, resized, against the core of the resized layer."""
    model = model_of(name)
    site = inspect(model).attention[0]
    layer: WindowAttention = model.get_submodule(site.name)
    core = whole_core(model, site)
    assert core.position_bias is not None
    for size in ((6, 6), (2, 2), (4, 4)):
        layer.set_window_size(size)
        core.set_window_size(size)
        wanted = family_named(site.family).parts(layer).position_bias
        assert wanted is not None
        torch.testing.assert_close(core.position_bias(), wanted())


@pytest.mark.parametrize("name", ["swin", "swin_v2", "eva_split", "rope_mixed", "twins_local", "pvt_v2"])
@torch.no_grad()
def test_hallucinated_heads_take_their_rows_along(name: str) -> None:
    """Heads 1 and 0 share the map of 1: the output is that of a layer whose head 0 has the map parts of head 1."""
    model = model_of(name)
    site = next(s for s in inspect(model).attention if model.get_submodule(s.name).num_heads == 4)
    args, kwargs, _ = calls(model, torch.randn(3, 3, *MODELS[name][2]))[site.name]
    parts = family_named(site.family).parts(model.get_submodule(site.name))
    core = build_core(parts, HeadLayout((1, 3), ((0,), (2,))), scale=output_scale(model, site.scale))
    copied = copy.deepcopy(whole_core(model, site))
    for child, parent in ((0, 1), (2, 3)):
        for rows in (*copied.rows("q"), *copied.rows("k")):
            if rows is not None:
                rows.unflatten(0, (4, -1))[child] = rows.unflatten(0, (4, -1))[parent]
    for module in (copied.position_bias, copied.q_norm):
        keep_heads = getattr(module, "keep_heads", None)
        if keep_heads is not None:
            keep_heads([1, 1, 3, 3])
    whole_kwargs = dict(kwargs)
    if getattr(kwargs.get("rope"), "ndim", 0) > 2:  # one rotation a head
        whole_kwargs["rope"] = kwargs["rope"][..., [1, 1, 3, 3], :, :]
    wanted = copied(*args, **whole_kwargs)
    torch.testing.assert_close(core(*args, **kwargs), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    names = {name: tuple(value.shape) for name, value in core.state_dict().items()}
    whole = {name: tuple(value.shape) for name, value in copied.state_dict().items()}
    smaller = {name for name in names if names[name] != whole[name]}
    assert smaller >= {f"{group}.weight" for group in core.packing if "q" in group or "k" in group}


def test_what_a_low_rank_product_can_be_absorbed_into() -> None:
    absorbs = {}
    for name in MODELS:
        model = model_of(name)
        site = inspect(model).attention[0]
        core = whole_core(model, site)
        absorbs[name] = (core.fixed_qk_dim is None, core.fixed_v_dim is None)
    assert {name for name, (thin_qk, _) in absorbs.items() if not thin_qk} == {
        *("swin_v2", "eva_fused", "eva_split", "dinov3", "rope_mixed", "pe", "rope_split", "swin_cr", "sam"),
        *("mvit", "botnet", "halonet", "mobilenet_hybrid", "differential", "grouped_queries"),
    }
    assert {name for name, (_, thin_vo) in absorbs.items() if not thin_vo} == {
        *("eva_split", "levit", "levit_conv", "mvit", "efficientformer_v2", "convit"),
        *("botnet", "halonet", "mobilenet_hybrid", "differential", "grouped_queries"),
    }


@pytest.mark.parametrize("name", MODELS)
def test_unknown_parts_and_foreign_forwards_are_refused(name: str) -> None:
    model = model_of(name)
    site = inspect(model).attention[0]
    layer, family = model.get_submodule(site.name), family_named(site.family)
    assert family.refuse(layer) is None
    layer.temperature = nn.Parameter(torch.ones(1))
    assert family.refuse(layer) == f"unknown part temperature in {type(layer).__name__}"
    del layer.temperature
    layer.__class__ = type("Changed", (type(layer),), {"forward": lambda self, x: x})
    assert family.refuse(layer) == f"Changed is a {family.attention.__name__} with a forward of its own"


@pytest.mark.parametrize(
    ("name", "layout", "keys", "values"),
    [
        ("grouped_queries", HeadLayout((1, 3), ((0,), (2,))), 2, 2),
        ("grouped_queries", HeadLayout((0, 1), ((2,), (3,))), 1, 2),  # both kept maps read the first key head
        ("grouped_queries", HeadLayout((2,), ((0, 1, 3),)), 1, 2),
        ("mobilenet_hybrid", HeadLayout((3, 1), ((0,), (2,))), 1, 1),
        ("differential", HeadLayout((0, 2, 4, 6), ((1,), (3,), (5,), (7,))), 4, 4),
    ],
)
@torch.no_grad()
def test_shared_keys_and_values_are_stored_once(name: str, layout: HeadLayout, keys: int, values: int) -> None:
    """And a head that takes the map of a parent is one whose queries (and own keys) are the parent's."""
    model = model_of(name)
    site = inspect(model).attention[0]
    args, kwargs, _ = calls(model, torch.randn(3, 3, *MODELS[name][2]))[site.name]
    parts = family_named(site.family).parts(model.get_submodule(site.name))
    core = build_core(parts, layout, scale=output_scale(model, site.scale))
    assert len(core.rows("k")[0]) == keys * core.qk_dim
    assert len(core.rows("v")[0]) == values * core.v_dim
    whole = whole_core(model, site)
    inputs = whole.inputs(*args, **kwargs)
    q, k, v = whole.project(inputs)
    parents = list(range(whole.num_heads))
    for parent, children in zip(layout.maps, layout.children, strict=True):
        for child in children:
            parents[child] = parent
    mixed = whole.inner_norm(whole.mix(q[:, parents], k[:, parents], v, inputs))
    wanted = whole.call.leave(whole.proj(whole.call.restore(mixed, inputs)), inputs)
    torch.testing.assert_close(core(*args, **kwargs), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_shared_heads_whose_outputs_are_normalised_are_left_alone() -> None:
    shared = {**ROPE, "attn_type": "rope", "qkv_fused": False, "num_kv_heads": 2, "scale_attn_inner": True}
    anatomy = inspect(timm.create_model("vit_small_patch16_rope_224", **shared))
    assert not anatomy.attention
    assert {item.reason for item in anatomy.skipped} == {
        "keys and values are shared between heads whose outputs are normalised"
    }


@torch.no_grad()
def test_heads_without_a_projection_are_solved_into_their_values() -> None:
    """A block for each head in the original order, whatever the order in which they are stored."""
    model = model_of("halonet")
    site = inspect(model).attention[0]
    args, kwargs, _ = calls(model, torch.randn(3, 3, 64, 64))[site.name]
    core = build_core(family_named(site.family).parts(model.get_submodule(site.name)), HeadLayout((3, 1), ((0,), (2,))))
    before = core(*args, **kwargs)
    blocks = torch.randn(4, core.v_dim, core.v_dim)
    bias = torch.randn(core.attn_dim)
    core.load_projection(torch.block_diag(*blocks) @ core.proj.weight, bias)
    by_head = before.unflatten(1, (4, -1))
    wanted = torch.einsum("hoi,bhiyx->bhoyx", blocks, by_head).flatten(1, 2) + bias[:, None, None]
    torch.testing.assert_close(core(*args, **kwargs), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["pvt_v2", "twins_local", "nextvit", "swin", "eva_split", "beit", "visformer"])
@torch.no_grad()
def test_every_path_that_a_family_allows(name: str) -> None:
    """Mean path and map filter everywhere, the identity path where query i is key i; non-square grids if told."""
    size = (64, 64) if name == "nextvit" else MODELS[name][2]
    model, images = model_of(name), torch.randn(12, 3, *size)
    compact = vitcompact.convert(model, images=images, terms=("identity", "mean"), filter_rank=2)
    for layer in plan_of(compact).layers:
        if layer.kind == "attention":
            core, spec = compact.get_submodule(layer.name), layer.operators[0]
            assert isinstance(spec, HallucinateSpec)
            norm = not isinstance(core.inner_norm, nn.Identity)
            assert (spec.identity, spec.mean) == (not norm and core.reduction is None, not norm)
            assert spec.filter_rank == (0 if name == "nextvit" and core.reduction is not None else 2)
    moved = perturbed(compact, seed=2).eval()
    folded = vitcompact.fold(moved, images=images)
    assert parity_of(folded).rel_diff <= 2e-4
    assert (folded(images) - compact(images)).abs().max() > 1e-2 * compact(images).abs().max()
