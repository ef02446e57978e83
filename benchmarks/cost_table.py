"""Parameters and MACs of the paper's pair (half of the heads, rank half of the outputs), before and after.

    python benchmarks/cost_table.py            # the table of docs/results.md, about a minute on one core

Counted on the meta device at each model's own input size: no weights, no downloads.
"""

from __future__ import annotations

import argparse

import timm
import torch
from timm.layers import Attention

from vitcompact.analysis.analyze import predicted_cost
from vitcompact.data import resolve_input
from vitcompact.models.cost import count
from vitcompact.operators.factorize import FactorizeSpec
from vitcompact.operators.hallucinate import make_spec
from vitcompact.planning.scope import wanted_layers
from vitcompact.planning.selection import Selection
from vitcompact.plans.schema import LayerPlan, Plan

MODELS = (
    *(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")),
    *(f"pvt_v2_b{size}" for size in range(6)),
    "twins_pcpvt_small",
    *(f"nextvit_{size}" for size in ("small", "base", "large")),
)


def pair_plan(model: torch.nn.Module, ratio: float, rank_ratio: float) -> Plan:
    """The structure that the two ratios mean; which head is whose parent does not change the cost."""
    wanted = wanted_layers(model, Selection(ratio, rank_ratio))
    layers = []
    for site, amount in wanted.attention:
        attention: Attention = model.get_submodule(site.name)
        heads = attention.num_heads
        kept = heads - amount
        parents = {kept + child: child % kept for child in range(amount)}
        layers.append(LayerPlan(site.name, "attention", (make_spec(heads, parents),)))
    layers += [LayerPlan(site.name, "ffn", (FactorizeSpec(rank),)) for site, rank in wanted.ffn]
    return Plan(tuple(layers), wanted.skipped)


def row(name: str, ratio: float, rank_ratio: float) -> str:
    """One line of the table."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    before = count(model, resolve_input(model).input_size)
    after = predicted_cost(model, pair_plan(model, ratio, rank_ratio))
    params, macs = after.params / before.params - 1, after.macs / before.macs - 1
    return (
        f"| {name} | {before.params / 1e6:.1f} M | {after.params / 1e6:.1f} M | {params:+.1%} "
        f"| {before.macs / 1e9:.2f} G | {after.macs / 1e9:.2f} G | {macs:+.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="timm names")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the heads to hallucinate")
    parser.add_argument("--rank-ratio", type=float, default=0.5, help="rank of the FFN output over its outputs")
    args = parser.parse_args()
    print("| model | params | after | | MACs | after | |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in args.models:
        print(row(name, args.ratio, args.rank_ratio), flush=True)


if __name__ == "__main__":
    main()
