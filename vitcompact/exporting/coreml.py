"""`.mlpackage`: Core ML, converted here and run on Apple's systems only."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch._decomp import get_decompositions
from torch.export import ExportedProgram

from vitcompact.exporting.base import Format, Job, trace
from vitcompact.exporting.description import KEY

_LARGEST_BATCH = 128


class CoreMl(Format):
    """Core ML; its runtime does not exist on Linux, so there the file is not run before it is kept."""

    suffix = ".mlpackage"
    title = "Core ML"
    modules, extra = ("coremltools",), "coreml"
    precisions = ("float32", "float16")
    how_to_run = "coremltools.models.MLModel('{path}').predict({{'{input}': images}})['{output}']"

    def write(self, job: Job, path: Path) -> None:
        import coremltools

        options, size = job.options, job.description.input.input_size
        program = _known(trace(copy.deepcopy(job.model), size, most=_LARGEST_BATCH))
        precision = coremltools.precision
        model = coremltools.convert(
            program,
            outputs=[coremltools.TensorType(name=options.output_name)],
            minimum_deployment_target=coremltools.target.iOS17,
            compute_precision=precision.FLOAT16 if options.fp16 else precision.FLOAT32,
        )
        model.user_defined_metadata[KEY] = job.description.text()
        model.save(str(path))

    def open(self, path: Path) -> None:
        return None


def _known(program: ExportedProgram) -> ExportedProgram:
    """The program without the two operators of ours that the converter does not know."""
    program = program.run_decompositions(get_decompositions([torch.ops.aten.addcmul.default]))
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    program.graph_module.recompile()
    return program
