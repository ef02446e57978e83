"""`.pte`: ExecuTorch, with its XNNPACK backend for CPUs, which takes one image at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vitcompact.errors import CheckpointError
from vitcompact.exporting.base import Format, Job, Opened, trace
from vitcompact.exporting.description import KEY, Description


class ExecuTorch(Format):
    """ExecuTorch."""

    suffix = ".pte"
    title = "ExecuTorch"
    modules, extra = ("executorch",), "executorch"
    how_to_run = (
        "executorch.runtime.Runtime.get().load_program('{path}').load_method('forward').execute("
        "[torch.from_numpy(images[:1])])[0]"
    )

    def write(self, job: Job, path: Path) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = trace(job.model, job.description.input.input_size, batch=1)
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={KEY: job.description.text()}
        )
        path.write_bytes(lowered.to_executorch().buffer)

    def open(self, path: Path) -> Opened:
        self.require(self.modules, self.extra)
        from executorch.runtime import Runtime

        try:
            program = Runtime.get().load_program(path)
            text = program.load_method(KEY).execute([])[0] if KEY in program.method_names else None
            method = program.load_method("forward")
        except RuntimeError as error:
            raise CheckpointError(f"{path} is damaged or no ExecuTorch program: {error}") from error
        description = Description.read(text, str(path))

        def run(images: Tensor) -> Tensor:
            return torch.cat([method.execute([image[None].contiguous()])[0].clone() for image in images])

        return Opened(description, run, f"ExecuTorch (XNNPACK), PyTorch {torch.__version__}")
