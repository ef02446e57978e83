"""`.xml` with its `.bin`: OpenVINO's intermediate representation, int8 by NNCF."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vitcompact.errors import CheckpointError
from vitcompact.exporting.base import Format, Job, Opened, trace
from vitcompact.exporting.description import KEY, Description


class OpenVino(Format):
    """OpenVINO."""

    suffix = ".xml"
    title = "OpenVINO"
    modules, extra = ("openvino",), "openvino"
    int8_modules, int8_extra = ("nncf",), "openvino,quant"
    precisions = ("float32", "float16", "int8")
    extra_suffixes = (".bin",)
    largest = 1 << 28
    attention = "sdpa"  # its own fused operator takes wide values
    how_to_run = "openvino.Core().compile_model('{path}', 'CPU')(images)[0]"

    def reason(self, said: str) -> str:
        """The operators without a rule, which are listed below the place in its source where that is found out."""
        listed = [line.strip()[3:] for line in said.splitlines() if line.strip().startswith("-- ")]
        return "; ".join(listed) or super().reason(said)

    def write(self, job: Job, path: Path) -> None:
        import openvino

        size = job.description.input.input_size
        model = openvino.convert_model(trace(job.model, size))
        model.reshape([-1, *size])
        model.inputs[0].get_tensor().set_names({job.options.input_name})
        model.outputs[0].get_tensor().set_names({job.options.output_name})
        if job.options.int8:
            model = _quantized(model, job.images)
        model.set_rt_info(job.description.text(), [KEY])
        openvino.save_model(model, path, compress_to_fp16=job.options.fp16)

    def open(self, path: Path) -> Opened:
        self.require(self.modules, self.extra)
        import openvino

        core = openvino.Core()
        try:
            model = core.read_model(path)
        except RuntimeError as error:
            raise CheckpointError(f"{path} is damaged or no OpenVINO model: {_reason(error)}") from error
        text = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
        description = Description.read(text, str(path))
        compiled = core.compile_model(model, "CPU", _settings(description.precision))

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())

        return Opened(description, run, f"OpenVINO {openvino.__version__.split('-')[0]}")

    def loaded(self, program: ExportedProgram, tensors: Sequence[Tensor]) -> list[Callable[[], object]]:
        import openvino

        core, model = openvino.Core(), openvino.convert_model(program)
        each = [openvino.Model([result], model.get_parameters()) for result in model.get_results()]
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        return [partial(core.compile_model(one, "CPU", _settings("float32")), arrays) for one in each]


def _settings(precision: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    if precision == "float32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16 where the CPU has it
    return settings


def _quantized(model: Any, images: Iterable[Tensor]) -> Any:
    """Static int8 by NNCF's own recipe for transformers."""
    import nncf

    singles = [image[None].numpy() for batch in images for image in batch]
    return nncf.quantize(model, nncf.Dataset(singles), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(singles))


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
