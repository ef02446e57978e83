"""`.pt2`: the archive of `torch.export`, run by PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from vitcompact.exporting.base import Format, Half, Job, Opened, trace
from vitcompact.exporting.description import KEY, Description
from vitcompact.exporting.pt2_archive import check_archive

_ENTRY = f"{KEY}.json"


class Pt2(Format):
    """torch.export."""

    suffix = ".pt2"
    title = "torch.export"
    precisions = ("float32", "float16")
    how_to_run = "torch.export.load('{path}').module()(torch.from_numpy(images))"

    def write(self, job: Job, path: Path) -> None:
        model = Half(copy.deepcopy(job.model)) if job.options.fp16 else job.model
        program = trace(model, job.description.input.input_size)
        _forget_source(program.graph_module)
        torch.export.save(program, path, extra_files={_ENTRY: job.description.text()})

    def open(self, path: Path) -> Opened:
        check_archive(path)
        extra: dict[str, str] = {_ENTRY: ""}
        program = torch.export.load(path, extra_files=extra)
        description = Description.read(extra[_ENTRY], str(path))
        module = program.module()

        def run(images: Tensor) -> Tensor:  # a function: an exported module refuses train() and eval()
            out: Tensor = module(images)
            return out

        return Opened(description, run, f"torch.export, PyTorch {torch.__version__}")


def _forget_source(graph_module: nn.Module) -> None:
    """Drop the lines of code that each node came from: they name folders of the machine that wrote the file."""
    for module in graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
