"""How much an error at each token and channel of a site's output matters to the model's output."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitcompact.calibration.held_out import GROUP

FLOOR = 0.05
"""Smallest weight of a token and of a channel direction, relative to the mean: nothing is ever quite forgotten."""


@dataclass
class Sensitivity:
    """Sensitivities of the outputs of sites: of channels, and of all tokens `(images, tokens)`, window by window."""

    tokens: dict[str, Tensor] = field(default_factory=dict)
    metric: dict[str, Tensor] = field(default_factory=dict)

    def weights(self, name: str, start: int, stop: int) -> Tensor:
        """How much each token of the images `start` to `stop` matters, `(images, tokens)`, 1 on average over all."""
        tokens = self.tokens[name]
        mean = sum(float(group.sum()) for group in tokens.split(GROUP)) / tokens.numel()
        return (tokens[start:stop] / max(mean, 1e-300) + FLOOR) / (1 + FLOOR)

    def scale(self, name: str) -> float:
        """Expected squared change of the output per image if every token's vector is off by one (root mean square)."""
        return float(self.metric[name].trace()) / self.metric[name].shape[0] / len(self.tokens[name])

    def root(self, name: str) -> Tensor:
        """Symmetric root `(channels, channels)` of the channels' metric, of mean square 1 and float64."""
        metric = self.metric[name]
        size = metric.shape[0]
        metric = metric * size / metric.trace().clamp_min(1e-300)
        values, vectors = torch.linalg.eigh(metric)
        return (vectors * ((values.clamp_min(0) + FLOOR) / (1 + FLOOR)).sqrt()) @ vectors.T
