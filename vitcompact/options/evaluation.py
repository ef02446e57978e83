"""What `evaluate` measures beside a model's own outputs."""

# ruff: noqa: RUF009  (option() returns a dataclasses.field, which every class gets anew)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitcompact.options.declare import IMAGES, MEASUREMENT, option

Probe = Literal["knn", "linear"]
"""How classes are read off features: by the nearest neighbours, or by a linear layer."""
PROBE_K = 20
"""Neighbours, as in DINO (arXiv 2104.14294)."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Features judged by what can be read off them."""

    probe: Probe | None = option(
        None,
        "Judge the pooled features, of a model with or without a head, by the classes that nearest neighbours (knn) or "
        "a linear layer read off them; fitted to each model's own features of other labelled images.",
        panel=MEASUREMENT,
        unset="the model's own outputs",
    )
    probe_data_dir: str | Path | None = option(
        None,
        "Labelled images that the probe is fitted to: a folder of class folders, or a .tar of them.",
        panel=IMAGES,
        unit="PATH",
        unset="the training split of the images to evaluate on",
    )
    probe_num_samples: int | None = option(
        None,
        "Number of images that the probe is fitted to, drawn at random.",
        IMAGES,
        "N",
        unset="all",
        least=1,
        rare=True,
    )
    probe_k: int = option(PROBE_K, "Nearest neighbours that vote.", MEASUREMENT, "N", least=1, rare=True)
