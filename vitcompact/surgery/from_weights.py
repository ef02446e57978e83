"""Surgery without images: every operator by what the weights alone tell."""

from __future__ import annotations

from torch import nn

from vitcompact.data import has_no_weights
from vitcompact.operators import OPERATORS
from vitcompact.operators.base import Request
from vitcompact.plans.schema import LayerPlan
from vitcompact.surgery.solve import Draft, Site
from vitcompact.utils.progress import Progress


def convert_from_weights(
    work: nn.Module, drafts: dict[str, tuple[Site, Draft]], request: Request, progress: Progress
) -> list[LayerPlan]:
    """Give every drafted layer its structure and the best values that weights alone tell, in place.

    A model on the meta device stays as it is: there are no values to be found.
    """
    layers = []
    progress.start("converting from weights", len(drafts))
    for name, (site, draft) in drafts.items():
        chosen = (OPERATORS[op].choose_from_weights(work, site, size, request) for op, size in draft.requested)
        specs = draft.operators or tuple(chosen)
        for spec in specs if not has_no_weights(work) else ():
            OPERATORS[spec.op].solve_from_weights(work, site, spec)
        layers.append(LayerPlan(name, draft.kind, specs))
        progress.advance(note=name)
    progress.finish()
    return layers
