"""Surgery without images: copied heads paired by their weights, plain SVD, units of least weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcompact.calibration.similarity import weight_similarity
from vitcompact.layers.pointwise import matrix
from vitcompact.models import AttentionSite, FfnSite, family_named
from vitcompact.models.ffn import hidden_layers
from vitcompact.models.layer_scale import output_scale, scaled
from vitcompact.operators import thin
from vitcompact.operators.factorize import plain_svd
from vitcompact.operators.hallucinate import core_of, make_spec
from vitcompact.operators.neurons import keep_units, set_output
from vitcompact.operators.pairing import shortlist
from vitcompact.operators.replay import build_layer
from vitcompact.plan.schema import LayerPlan, Plan
from vitcompact.plan.specs import FactorizeSpec, HallucinateSpec, NeuronsSpec, ThinQkSpec, ThinVoSpec
from vitcompact.surgery.solve import Draft, Site, factorize
from vitcompact.utils.progress import Progress


def convert_from_weights(work: nn.Module, drafts: dict[str, tuple[Site, Draft]], progress: Progress) -> list[LayerPlan]:
    """Give every drafted layer its structure and the best values that weights alone tell, in place."""
    layers = []
    progress.start("converting from weights", len(drafts))
    for name, (site, draft) in drafts.items():
        if isinstance(site, AttentionSite):
            layers.append(_attention(work, site, draft))
        else:
            layers.append(_ffn(work, site, draft))
        progress.advance(note=name)
    progress.finish()
    return layers


def _attention(work: nn.Module, site: AttentionSite, draft: Draft) -> LayerPlan:
    layer = LayerPlan(site.name, "attention", draft.operators)
    if draft.num_hallucinated:
        parts = family_named(site.family).parts(work.get_submodule(site.name))
        parents = shortlist(1.0 - weight_similarity(parts), draft.num_hallucinated, 1)[0]
        layer = LayerPlan(site.name, "attention", (make_spec(parts.num_heads, parents),))
    if (spec := layer.find(HallucinateSpec)) is not None:
        build_layer(work, site, LayerPlan(site.name, "attention", (spec,)), Plan((), form="folded"))
    core = core_of(work, site)
    query, key, value = (core.rows(part)[0].double() for part in "qkv")
    if (narrow := layer.find(ThinQkSpec)) is not None:
        moments = thin.QkMoments(site.name)
        moments.query, moments.key = _grams(query, core.num_maps), _grams(key, core.num_maps)
        thin.set_qk(core, *moments.subspaces()[:2], narrow.qk_dim)
    if (thinner := layer.find(ThinVoSpec)) is not None:
        covariance = _grams(value, core.num_heads)
        basis, _ = thin.value_bases(covariance, core.proj.weight)
        thin.set_vo(core, basis[..., : thinner.v_dim], covariance)
    return layer


def _grams(weight: Tensor, heads: int) -> Tensor:
    """Moments of each head's channels if the layer's inputs were white, `(heads, channels, channels)`."""
    blocks = weight.unflatten(0, (heads, -1))
    return blocks @ blocks.mT


def _ffn(work: nn.Module, site: FfnSite, draft: Draft) -> LayerPlan:
    layer = LayerPlan(site.name, "ffn", draft.operators)
    if (fewer := layer.find(NeuronsSpec)) is not None:
        weight, bias = scaled(output_scale(work, site.scale), *matrix(work.get_submodule(site.output)))
        units = _strongest(work.get_submodule(site.name), weight, fewer.hidden)
        keep_units(work, site, units)
        set_output(work, site, weight[:, units], bias)
    if (spec := layer.find(FactorizeSpec)) is not None:
        weight, bias = scaled(output_scale(work, site.scale), *matrix(work.get_submodule(site.output)))
        factorize(work, site, spec, plain_svd(weight, bias, spec.rank))
    return layer


def _strongest(ffn: nn.Module, weight: Tensor, count: int) -> Tensor:
    """Units with the largest product of incoming and outgoing weight norms."""
    strength = weight.norm(dim=0)
    for name in hidden_layers(ffn):
        rows = ffn.get_submodule(name).weight
        assert isinstance(rows, Tensor)
        strength = strength * rows.double().flatten(1).norm(dim=1).unflatten(0, (-1, len(strength))).norm(dim=0)
    return torch.topk(strength, count).indices.sort().values
