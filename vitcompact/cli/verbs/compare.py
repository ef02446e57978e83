"""`vitcompact compare`."""

from __future__ import annotations

from typing import Any

from vitcompact.benchmarking.setup import open_device
from vitcompact.checkpoint import LoadedModel, SourceOptions, load_source
from vitcompact.checkpoint.stored import weight_bytes
from vitcompact.cli import images, inputs
from vitcompact.cli.command import Options
from vitcompact.cli.console import Console
from vitcompact.cli.render.compare import compare_tables
from vitcompact.cli.report import check_report, distinct, made_by, write_report
from vitcompact.cli.verbs import common
from vitcompact.compaction import compare
from vitcompact.data import evaluation_batches
from vitcompact.errors import UsageError


def run(options: Options, given: frozenset[str], console: Console) -> None:
    """Put the models beside each other; the first is what the others are compared with."""
    sources = list(options.sources or ())
    twice = len(set(sources)) < len(sources)
    if len(sources) < 2 or twice:
        raise UsageError("compare takes two or more models, each once: vitcompact compare A B")
    open_device(options.device)
    if options.report is not None:
        check_report(options.report, png=False)
    loaded = {source: load_source(source, SourceOptions(img_size=options.img_size)) for source in sources}
    data = None
    if images.has_images(options) or options.eval_data_dir is not None:
        data = images.evaluation_set(options) or images.training_set(options)
    first = loaded[sources[0]].model
    found = compare(
        {source: each.model for source, each in loaded.items()},
        None if data is None else evaluation_batches(first, data),
        num_pairs=options.num_pairs,
        device=options.device,
        seed=options.seed,
        progress=console.progress,
    )
    models = [{**common.plain(each.to_json()), **_stored(loaded[each.name])} for each in found]
    document: dict[str, Any] = {"models": models, "options": inputs.effective(options)}
    if options.report is not None:
        named = [{**model, "name": name} for model, name in zip(models, distinct(sources), strict=True)]
        page = {"title": f"{len(models)} models beside each other", "models": named}
        write_report({**page, "made": made_by("compare", options, given, None)}, options.report)
        console.note(f"drawn into {options.report}")
    console.result(document, *compare_tables(document))


def _stored(loaded: LoadedModel) -> dict[str, Any]:
    """The size of the weights as they are stored, and what was done to which layers."""
    plan = getattr(loaded.model, "vitcompact_plan", None)
    return {"bytes": weight_bytes(loaded.model, loaded.dtype), "plan": None if plan is None else repr(plan)[1:-1]}
