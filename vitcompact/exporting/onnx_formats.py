"""Number formats of ONNX files, by ONNX Runtime's own tools, and an operator that torch's exporter lacks."""

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
