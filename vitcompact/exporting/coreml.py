"""`.mlpackage`: Core ML, converted here and run on Apple's systems only."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch._decomp import get_decompositions

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
        program = trace(copy.deepcopy(job.model), size, most=_LARGEST_BATCH)
        program = program.run_decompositions(get_decompositions([torch.ops.aten.addcmul.default]))
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
