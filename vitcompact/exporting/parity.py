"""How far an exported file's outputs are from PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitcompact.errors import VerificationError
from vitcompact.exporting.base import Run
from vitcompact.models.scores import same_guess

BATCH_SIZES = (1, 3, 8)
"""One image, several, and more than the file was traced with."""
SHARES = {"float32": 1e-4, "float16": 2e-2, "int8": 0.25}
"""Largest difference accepted by default, relative to the largest output."""


@dataclass(frozen=True)
class Parity:
    """Differences over all batches: the largest one, the same over the largest output, and equal first guesses."""

    max_abs_diff: float
    rel_diff: float
    agreement: float

    def require(self, precision: str, atol: float | None, runtime: str) -> None:
        """Raise unless the difference is accepted.

        Raises:
            VerificationError: it is not.
        """
        found, allowed = (self.rel_diff, SHARES[precision]) if atol is None else (self.max_abs_diff, atol)
        if not found <= allowed:
            what = "of the largest output" if atol is None else "in an output"
            raise VerificationError(
                f"{runtime} differs from PyTorch by {found:.2e} {what}, allowed {allowed:g}; nothing was written"
            )


@torch.no_grad()
def compare(model: nn.Module, run: Run, images: Tensor, batch_sizes: Sequence[int] = BATCH_SIZES) -> Parity:
    """Run both on the first images `(n, channels, height, width)`, in batches of each size.

    Raises:
        VerificationError: outputs that are not finite, of another shape, or a batch that the runtime refuses.
    """
    difference, largest, same = 0.0, 0.0, []
    for size in batch_sizes:
        batch = images[:size]
        wanted = model(batch)
        try:
            got = run(batch)
        except Exception as error:  # each runtime has its own
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise VerificationError(f"the exported model does not run on {size} images: {reason}") from error
        if got.shape != wanted.shape or not (torch.isfinite(got).all() and torch.isfinite(wanted).all()):
            raise VerificationError(
                f"outputs of the exported model are {tuple(got.shape)}, expected finite {tuple(wanted.shape)}"
            )
        difference = max(difference, float((got - wanted).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
        same.append(same_guess(got.flatten(1), wanted.flatten(1)))
    return Parity(difference, difference / max(largest, 1e-30), float(torch.cat(same).double().mean()))
