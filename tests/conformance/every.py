"""The small models of all families together, once each."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import timm
import torch
from torch import Tensor, nn

import vitcompact
from tests.conformance import test_eva, test_nextvit, test_other_families, test_plain, test_pvt, test_swin
from tests.conformance.conftest import with_statistics
from tests.conformance.suite import Case
from vitcompact.folding.verify import perturbed
from vitcompact.planning.request import OutOfReach

MODULES = (test_plain, test_eva, test_pvt, test_swin, test_nextvit, test_other_families)
SUITES = [suite for module in MODULES for suite in vars(module).values() if getattr(suite, "cases", ())]
CASES: list[Case] = list({(case.id, case.name): case for suite in SUITES for case in suite.cases}.values())


PAIR: dict[str, Any] = {"ratio": 0.5, "rank_ratio": 0.5}
BUDGETS: tuple[dict[str, Any], ...] = ({"target_macs": 0.75}, {"target_params": 0.97})
"""The second for models of which convolutions are the most."""
METHODS = ("pair", "budget")


def build(case: Case) -> nn.Module:
    """A case's model in eval mode, random weights perturbed."""
    torch.manual_seed(0)
    model = timm.create_model(case.name, pretrained=False, num_classes=7, **case.kwargs)
    return with_statistics(perturbed(model, seed=1), case.size)


def compacted(model: nn.Module, images: Tensor, method: str) -> nn.Module:
    """A folded model after the pair, or after the first budget that it can reach."""
    torch.manual_seed(0)
    if method == "pair":
        return vitcompact.fold(vitcompact.convert(model, images=images, **PAIR))
    for budget in BUDGETS[:-1]:
        with suppress(OutOfReach):
            return vitcompact.fold(vitcompact.convert(model, images=images, **budget))
    return vitcompact.fold(vitcompact.convert(model, images=images, **BUDGETS[-1]))
