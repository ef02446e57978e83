"""What a file that another runtime reads shall be."""

from __future__ import annotations

from dataclasses import dataclass

from vitcompact.errors import UsageError
from vitcompact.options.declare import EXPORT, check_limits, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `export` takes beside the model, the file and the images.

    Attributes:
        atol: None stands for a share of the largest output that depends on the number format.
    """

    opset: int = option(
        18,
        "ONNX operator set: a newer one needs a newer runtime.",
        panel=EXPORT,
        unit="N",
        least=18,
        most=23,
        rare=True,
    )
    input_name: str = option("images", "Name of the input in the file.", panel=EXPORT, unit="NAME", rare=True)
    output_name: str = option("outputs", "Name of the output in the file.", panel=EXPORT, unit="NAME", rare=True)
    fp16: bool = option(False, "Weights and arithmetic in float16.", panel=EXPORT)
    int8: bool = option(
        False, "Static int8, calibrated on images; attention's own products stay in float32.", panel=EXPORT
    )
    atol: float | None = option(
        None,
        "Largest difference from PyTorch's outputs that is accepted.",
        panel=EXPORT,
        unit="DIFFERENCE",
        unset="1e-4 of the largest output; 0.02 of it in float16, 0.25 in int8",
        above=0,
        rare=True,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.fp16 and self.int8:
            raise UsageError("a file has one number format: leave out `fp16` or `int8`")
        for name in ("input_name", "output_name"):
            if not getattr(self, name).isidentifier():
                raise UsageError(f"`{name}` must be a name of letters, digits and _, got {getattr(self, name)!r}")
        if self.input_name == self.output_name:
            raise UsageError(f"input and output need different names, got {self.input_name!r} for both")

    @property
    def precision(self) -> str:
        """The number format: `float32`, `float16` or `int8`."""
        return "float16" if self.fp16 else "int8" if self.int8 else "float32"
