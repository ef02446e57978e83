"""A classifier that answers each batch once: what several models are compared with need not run for each of them."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from vitcompact.models.forward import main_output, num_classes


class Recalled(nn.Module):
    """Remembers its answers by what the images are, so that batches may come in any order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes(model)
        self._answers: dict[bytes, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, classes)`."""
        pixels = images.detach().float().cpu().contiguous().numpy()
        key = hashlib.blake2b(f"{images.dtype} {tuple(images.shape)}".encode() + pixels.data).digest()
        if key not in self._answers:
            self._answers[key] = main_output(self.model(images))
        return self._answers[key]
