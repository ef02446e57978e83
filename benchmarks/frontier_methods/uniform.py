"""The budget's operators without its planning: every head and every FFN narrowed by the same share."""

from __future__ import annotations

from torch import nn

import vitcompact
from vitcompact.layers.pointwise import matrix
from vitcompact.models import inspect
from vitcompact.models.cores import whole_core
from vitcompact.models.cost import meta_copy
from vitcompact.operators.neurons import NeuronsSpec
from vitcompact.operators.replay import replay
from vitcompact.operators.thin import ThinQkSpec, ThinVoSpec
from vitcompact.plans.schema import LayerPlan, Plan
from vitcompact.plans.specs import OperatorSpec

from .common import Calibration, macs_of, nearest

MULTIPLE = 8
STEPS = 96


def uniform(model: nn.Module, calibration: Calibration, target: float) -> nn.Module:
    """The same share of queries, keys, values and hidden units everywhere, in multiples of 8, closed form alone."""

    def macs(step: int) -> int:
        return macs_of(replay(meta_copy(model), _plan(model, step / STEPS).folded()))

    step = nearest(macs, range(STEPS), macs_of(model), target)
    return vitcompact.convert(model, plan=_plan(model, step / STEPS), images=calibration.images, seed=calibration.seed)


def _plan(model: nn.Module, removed: float) -> Plan:
    def kept(size: int) -> int:
        return max(MULTIPLE, round((1 - removed) * size / MULTIPLE) * MULTIPLE)

    anatomy = inspect(model)
    layers = []
    for site in anatomy.attention:
        core = whole_core(model, site)
        sizes = ((ThinQkSpec, core.qk_dim), (ThinVoSpec, core.v_dim))
        thin: tuple[OperatorSpec, ...] = tuple(spec(kept(size)) for spec, size in sizes if kept(size) < size)
        layers.append(LayerPlan(site.name, "attention", thin))
    for ffn in anatomy.ffn:
        hidden = matrix(model.get_submodule(ffn.output))[0].shape[1]
        fewer: tuple[OperatorSpec, ...] = (NeuronsSpec(kept(hidden)),) if kept(hidden) < hidden else ()
        layers.append(LayerPlan(ffn.name, "ffn", fewer))
    return Plan(tuple(layer for layer in layers if layer.operators))
