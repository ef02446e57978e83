"""Deployment: the folded model as an ONNX file, run by ONNX Runtime without vitcompact, timm or torch.

    pip install 'vitcompact[onnx]' && python examples/deploy.py [FOLDED FILE.onnx]

Without arguments, the demo's model in a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

import vitcompact

DEMO = Path(vitcompact.__file__).parent / "demo" / "assets"


def export(folded: str | None, file: Path) -> float:
    """Write the file, proven against PyTorch; the largest difference."""
    if folded is None:
        model = vitcompact.load_source(str(DEMO / "vit_digits")).model
        small = vitcompact.fold(vitcompact.convert(model))  # from the weights alone, to be quick
    else:
        small = vitcompact.load(folded)
    result = vitcompact.export(small, file)  # compared at batch 1, 3 and 8 before it gets its name
    print(result.how_to_run)
    return float(result.max_abs_diff or 0.0)


def serve(file: Path, batch: int = 4) -> tuple[int, ...]:
    """What the machine that serves the model does; it needs onnxruntime and numpy only."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    images = np.random.default_rng(0).standard_normal((batch, *wanted.shape[1:])).astype(np.float32)
    (outputs,) = session.run(None, {wanted.name: images})
    print(f"{batch} images in, {outputs.shape} out")
    return tuple(outputs.shape)


def main(folded: str | None = None, file: str | None = None) -> tuple[float, tuple[int, ...]]:
    """Export, then serve."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(file or Path(folder) / "model.onnx")
        return export(folded, path), serve(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
