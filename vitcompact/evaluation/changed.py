"""The images whose answers changed most between a model and its reference, collected while both are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcompact.data import InputConfig, as_pixels
from vitcompact.reporting import picture_uri

KEPT = 12
"""Images that are shown."""
SAMPLED = 32
"""Images that are remembered of all, for measurements of the model's inside."""
THUMBNAIL = 128
"""Longest side of a shown image in pixels."""


class Observer(Protocol):
    """Told of every batch that two models were compared on."""

    def __call__(self, images: Tensor, output: Tensor, target: Tensor, labels: Tensor | None) -> None:
        """`images (batch, channels, height, width)`; `output` and `target`: logits, or pooled features."""


@dataclass(frozen=True)
class _Answer:
    score: float
    image: Tensor
    output: Tensor
    target: Tensor
    label: int | None


class MostChanged:
    """An `Observer` that keeps a few images: those that changed most, and a sample of all for `sample`.

    Images with another first guess come before others; among them, the larger total variation between the two models'
    probabilities counts. Of features, the smaller cosine.

    Args:
        classifier: outputs are logits, not features.
    """

    def __init__(self, classifier: bool, kept: int = KEPT) -> None:
        self.classifier, self.kept = classifier, kept
        self.seen = self.differ = 0
        self._answers: list[_Answer] = []
        self._sample: list[Tensor] = []
        self._chance = torch.Generator().manual_seed(0)

    def __call__(self, images: Tensor, output: Tensor, target: Tensor, labels: Tensor | None) -> None:
        """See `Observer`."""
        self._remember(images)
        output, target = output.detach().float().cpu(), target.detach().float().cpu()
        scores, differ = self._scores(output, target)
        self.differ += int(differ.sum())
        for index in scores.argsort(descending=True, stable=True)[: self.kept].tolist():
            label = None if labels is None or int(labels[index]) < 0 else int(labels[index])
            image = images[index].detach().float().cpu()
            self._answers.append(_Answer(float(scores[index]), image, output[index], target[index], label))
        self._answers = sorted(self._answers, key=lambda answer: -answer.score)[: self.kept]

    def _scores(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if not self.classifier:
            scores = 1 - F.cosine_similarity(output.double(), target.double(), dim=-1)
            return torch.nan_to_num(scores, nan=2.0), torch.zeros(len(output), dtype=torch.bool)
        before, after = probabilities(target), probabilities(output)
        differ = before.argmax(dim=1) != after.argmax(dim=1)
        return torch.nan_to_num((before - after).abs().sum(dim=1) / 2 + differ, nan=2.0), differ

    def _remember(self, images: Tensor) -> None:
        """Reservoir sampling: every image has the same chance, whatever the order of the data set."""
        for image in images:
            self.seen += 1
            if len(self._sample) < SAMPLED:
                self._sample.append(image.detach().float().cpu())
            elif (place := int(torch.randint(self.seen, (), generator=self._chance))) < SAMPLED:
                self._sample[place] = image.detach().float().cpu()

    @property
    def sample(self) -> Tensor | None:
        """Some of the images, `(up to 32, channels, height, width)`."""
        return torch.stack(self._sample) if self._sample else None

    def to_page(self, config: InputConfig, names: Sequence[str] = ()) -> dict[str, Any]:
        """What `reporting.answers` draws.

        Args:
            config: how the images were prepared.
            names: of the classes, in the order of the outputs.
        """
        called = _namer(names)
        channels = config.input_size[0]
        shown = self._answers if channels in (1, 3) else []
        shown = [answer for answer in shown if answer.score > 1e-6]
        images = [self._shown(answer, config, called) for answer in shown]
        return {"seen": self.seen, "differ": self.differ if self.classifier else None, "images": images}

    def _shown(self, answer: _Answer, config: InputConfig, called: Callable[[int], str]) -> dict[str, Any]:
        pixels = as_pixels(answer.image[None], config)[0].permute(1, 2, 0).numpy()
        one: dict[str, Any] = {"picture": picture_uri(pixels, THUMBNAIL)}
        if not self.classifier:
            return {**one, "cosine": 1 - answer.score}
        for side, logits in (("before", answer.target), ("after", answer.output)):
            chance = probabilities(logits[None])[0]
            guess = int(chance.argmax())
            one[side] = (called(guess), float(chance[guess]))
        return {**one, "label": None if answer.label is None else called(answer.label)}


def probabilities(logits: Tensor) -> Tensor:
    """`(batch, classes)`; one output is the logit of the second of two classes."""
    if logits.shape[1] == 1:
        second = logits.sigmoid()
        return torch.cat((1 - second, second), dim=1)
    return logits.softmax(dim=1)


def _namer(names: Sequence[str]) -> Callable[[int], str]:
    return lambda index: str(names[index]) if index < len(names) else f"class {index}"
