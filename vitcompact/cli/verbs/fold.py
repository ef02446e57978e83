"""`vitcompact fold`."""

from __future__ import annotations

import torch

from vitcompact.checkpoint import load_source
from vitcompact.cli import inputs
from vitcompact.cli.console import Console
from vitcompact.cli.render.results import fold_table
from vitcompact.cli.verb_options import FoldOptions
from vitcompact.cli.verbs import common
from vitcompact.fold import fold


def run(options: FoldOptions, given: frozenset[str], console: Console) -> None:
    """Fold MODEL, prove that nothing changed, and save the result in OUT."""
    space = common.workspace_for(options)
    out = common.out_for(options, space, "fold")
    taken = options.source is None
    options = common.model_from_workspace(options, space, "fold", console)
    if taken and space is not None and "finetune" not in space.state.stages:
        console.note("it was not finetuned: 'vitcompact finetune' before fold recovers accuracy")
    loaded = load_source(str(options.source))
    folded = fold(loaded.model, dtype=getattr(torch, options.dtype), seed=options.seed)
    results = {**common.plain({"parity": folded.vitcompact_parity})["parity"]}
    results |= common.plain({"cost": common.cost_of(folded)})["cost"]
    provenance, original = inputs.lineage(str(options.source))
    common.save_model(folded, out, options, results, provenance or loaded.provenance, original)
    if space is not None:
        space.record_stage("fold", out)
    document = {**results, "out": str(out), "options": inputs.effective(options)}
    console.result(document, fold_table(document))
    follow = f"; next: vitcompact eval, vitcompact bench{common.workdir_flag(options)}" if space is not None else ""
    console.note(f"written to {out}{follow}")
