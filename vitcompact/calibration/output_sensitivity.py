"""Output sensitivity on the first calibration images, of whichever layers are asked for, each measured once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vitcompact.calibration.sensitivity import NoInfluenceError, sensitivity
from vitcompact.calibration.token_weights import Sensitivity
from vitcompact.data import ImageBatches, first_images
from vitcompact.models import Site
from vitcompact.options.selection import Keep
from vitcompact.utils.progress import Progress, silent

IMAGES = 64
"""Images on which it is measured what errors of each layer do to the output."""


class OutputSensitivity:
    """What errors of a model's layers do to its output.

    Args:
        original: in eval mode and float32.
        keep: what counts of the features of a model without a head.

    Attributes:
        images: those of the calibration images that it is measured on.
    """

    def __init__(
        self, original: nn.Module, images: ImageBatches, keep: Keep = "both", progress: Progress = silent
    ) -> None:
        self.original, self.keep = original, keep
        self.images, self._progress = first_images(images, IMAGES), progress
        self._known = Sensitivity()
        self._none = False

    def of(self, sites: Sequence[Site]) -> Sensitivity | None:
        """Sensitivities of at least these sites' outputs; None where nothing does anything to the output.

        Raises:
            DataError: activations that are not finite.
        """
        missing = [site for site in sites if site.name not in self._known.metric]
        if missing and not self._none:
            try:
                found = sensitivity(self.original, missing, self.images, keep=self.keep, progress=self._progress)
            except NoInfluenceError:
                self._none = True
            else:
                self._known.tokens.update(found.tokens)
                self._known.metric.update(found.metric)
        return None if self._none or not sites else self._known
