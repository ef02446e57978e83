"""Number formats of ONNX files, by ONNX Runtime's own tools; an operator that torch lacks, and single outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxscript import opset18
from torch import Tensor

from vitcompact.exporting.base import Job

_CALIBRATION_BATCH = 16


def translations() -> dict[Any, Callable[..., Any]]:
    """Operators that torch's exporter does not know, as ONNX functions: a stable sort ranks tokens to merge.

    `TopK` puts the lower index first among equals, which is what stable means for a descending order.
    """

    def sort_stable(values: Any, *, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        axis = opset18.Constant(value_ints=[dim])
        length = opset18.Gather(opset18.Shape(values), axis)
        return opset18.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: sort_stable}


def in_float16(path: Path) -> None:
    """Turn a float32 file into float16 in place; inputs and outputs stay float32."""
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def in_int8(source: Path, path: Path, job: Job) -> None:
    """Static int8 of linear layers and convolutions: weights by channel, activations by tensor.

    The products of attention, whose factors are both activations, stay in float32, and so do softmax and norms.
    """
    quantize_static(
        source,
        path,
        _Reader(job.options.input_name, job.images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"MatMulConstBOnly": True},
    )


def single_outputs(path: Path) -> Iterator[Path | bytes]:
    """A model for each output, with what that needs and all inputs; of a single output the file itself."""
    whole = onnx.load(path, load_external_data=False)
    if len(whole.graph.output) == 1:
        yield path
        return
    whole = onnx.load(path)
    for output in whole.graph.output:
        yield _needed_for(output, whole).SerializeToString()


def _needed_for(output: onnx.ValueInfoProto, whole: onnx.ModelProto) -> onnx.ModelProto:
    graph, wanted, nodes = whole.graph, {output.name}, []
    for node in reversed(graph.node):  # in an order in which values come before what needs them
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(node.input)
    held = [each for each in graph.initializer if each.name in wanted]
    part = onnx.helper.make_graph(nodes[::-1], graph.name, graph.input, [output], held)
    return onnx.helper.make_model(part, opset_imports=whole.opset_import, ir_version=whole.ir_version)


class _Reader(CalibrationDataReader):
    """Calibration images in the form that the quantizer asks for."""

    def __init__(self, name: str, images: Iterable[Tensor]) -> None:
        self._batches = self._arrays(name, images)

    @staticmethod
    def _arrays(name: str, images: Iterable[Tensor]) -> Iterator[dict[str, np.ndarray]]:
        for batch in images:
            for part in batch.split(_CALIBRATION_BATCH):
                yield {name: part.contiguous().numpy()}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)
