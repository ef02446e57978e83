"""`.onnx`: written by torch's dynamo exporter, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from vitcompact.errors import CheckpointError
from vitcompact.exporting.base import Format, Job, Opened, trace
from vitcompact.exporting.description import KEY, Description
from vitcompact.utils.scratch import scratch

_BATCH = "batch"
_ERRORS_ONLY = 3


class Onnx(Format):
    """ONNX, in one file below 2 GB; above, the weights lie beside it."""

    suffix = ".onnx"
    title = "ONNX"
    modules, extra = ("onnx", "onnxscript", "onnxruntime"), "onnx"
    precisions = ("float32", "float16", "int8")
    extra_suffixes = (".onnx.data",)
    largest = 1 << 31
    attention = "matmul"
    how_to_run = "onnxruntime.InferenceSession('{path}').run(None, {{'{input}': images}})[0]"

    def write(self, job: Job, path: Path) -> None:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        from vitcompact.exporting.onnx_formats import in_float16, in_int8

        options = job.options
        program = _program(
            trace(job.model, job.description.input.input_size),
            opset_version=options.opset,
            input_names=[options.input_name],
            output_names=[options.output_name],
            dynamic_shapes=({0: _BATCH},),  # the traced program has its shapes; this names the axis
        )
        program.model.metadata_props[KEY] = job.description.text()
        program.save(path)
        if job.options.precision == "float32":
            return
        if job.options.fp16:
            in_float16(path)
        else:
            prepared = path.with_name("prepared.onnx")
            quant_pre_process(path, prepared, skip_symbolic_shape=True)
            in_int8(prepared, path, job)
            prepared.unlink()
        _describe(path, job.description)

    def open(self, path: Path) -> Opened:
        self.require(("onnxruntime",), self.extra)
        import onnxruntime

        try:
            session = _session(path)
        except Exception as error:  # the runtime's own classes share no base
            raise CheckpointError(f"{path} is damaged or no ONNX model: {_reason(error)}") from error
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
        description = Description.read(text, str(path))
        name = session.get_inputs()[0].name

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

        return Opened(description, run, f"ONNX Runtime {onnxruntime.__version__}")

    def loaded(self, program: ExportedProgram, tensors: Sequence[Tensor]) -> list[Callable[[], object]]:
        from vitcompact.exporting.onnx_formats import single_outputs

        with scratch() as folder:
            path = folder / "program.onnx"
            _program(program).save(path)
            sessions = [_session(each) for each in single_outputs(path)]
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        return [partial(_run, session, arrays) for session in sessions]


def _run(session: Any, arrays: Sequence[Any]) -> Any:
    return session.run(None, {each.name: array for each, array in zip(session.get_inputs(), arrays, strict=True)})


def _session(path: Path | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = _ERRORS_ONLY
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _program(traced: ExportedProgram, **options: Any) -> Any:
    """torch's ONNX program, optimised, each weight once and no trace of the code it came from."""
    from onnx_ir.passes import common

    from vitcompact.exporting.onnx_formats import translations

    table = translations()
    program = torch.onnx.export(traced, dynamo=True, verbose=False, custom_translation_table=table, **options)
    assert program is not None  # None only where a file was named
    common.DeduplicateInitializersPass(size_limit=1 << 31)(program.model)
    common.ClearMetadataAndDocStringPass()(program.model)
    return program


def _describe(path: Path, description: Description) -> None:
    """Put the description back where a converter dropped it."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: description.text()})
    onnx.save(model, path)


def _reason(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
