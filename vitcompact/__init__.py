"""vitcompact: pretrained timm Vision Transformers, smaller and faster without retraining from scratch.

Every function takes timm modules and normalised images, changes neither, and returns something new:

    compact(model, images, speedup=)      the whole job: plan, convert, train where needed, fold, time
    analyze(model, images)                what every layer could do without, and what that would save
    plan(model, images=, target_macs=)    what convert would do to which layer; prints as a table
    Curves("curves.json")                 keeps what was measured for it, so that another target costs seconds
    convert(model, images=, plan=)        the compacted model in training form; or with target_macs=, ratio=, ...
    convert_within(model, images, ...)    the smallest that loses no more than max_drop=, min_agreement=, min_cosine=
    finetune(compact, teacher, images)    short distillation from the original, without labels
    fold(compact)                         plain layers, proven equal
    export(folded, "model.onnx")          a file for another runtime, compared there with PyTorch
    open_exported("model.onnx")           such a file as a model
    evaluate(model, images, labels)       top-1 and top-5; with reference= likeness to the original
    bench(model, baseline)                latency, throughput and memory, interleaved
    compare({name: model, ...})           several models beside each other
    results(model)                        the plan and the measurements that a compacted model carries
    plain_attention(model)                attention that builds its maps, and which heads are hallucinated
    save(model, path), load(path)         a directory in timm's hub layout, safetensors
    push(path, "ORG/NAME")                such a directory to the Hugging Face hub
    load_source(source)                   a model of a timm name, a hub name, a directory or a weights file

A whole job:

    model   = timm.create_model("deit_small_patch16_224", pretrained=True)
    compact = vitcompact.convert(model, images=images, target_macs=0.8)
    tuned   = vitcompact.finetune(compact, model, images).model
    folded  = vitcompact.fold(tuned)
    vitcompact.save(folded, "out")
    again   = vitcompact.load("out")

`images` are a tensor (n, channels, height, width) as the model's own transform gives them, or an iterable of such
batches; `vitcompact.data` reads them from files. Importing the package, before timm or after it, registers its timm
entrypoint, so that `timm.create_model("local-dir:out", pretrained=True)` loads what was saved. What a user can put
right is raised as a `VitCompactError`, and its message says how.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitcompact.utils import early_exit

early_exit.watch_loading()

from vitcompact import timm_hook as timm_hook  # noqa: E402 - see `early_exit`

if TYPE_CHECKING:
    from vitcompact.public import *  # noqa: F403
    from vitcompact.public import __all__ as __all__


def __getattr__(name: str) -> Any:
    """The library's names, all with the first: torch and timm take seconds, and `vitcompact --help` needs neither."""
    if name != "__all__" and name.startswith("__"):
        raise AttributeError(name)
    public = import_module("vitcompact.public")
    globals().update({one: getattr(public, one) for one in (*public.__all__, "__all__")})
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("vitcompact.public").__all__})
