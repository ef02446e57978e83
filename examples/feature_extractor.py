"""A feature extractor: no head, no labels; judged by the cosine of its features and by who is whose neighbour.

    python examples/feature_extractor.py

On the demo's model without its head, and its images, offline, in seconds. For your own, replace `extractor()`: a timm
model with `num_classes=0`, or `vitcompact.load_source("hf-hub:ORG/NAME").model`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import vitcompact
from vitcompact.data import CalibrationImages, DataOptions, evaluation_batches

DEMO = Path(vitcompact.__file__).parent / "demo" / "assets"


def extractor() -> nn.Module:
    """The demo's model without its head."""
    model = vitcompact.load_source(str(DEMO / "vit_digits")).model
    model.reset_classifier(0)  # type: ignore[operator]
    return model


def main() -> dict[str, float]:
    """Likeness of the features to the original's."""
    model = extractor()
    images = CalibrationImages(model, DataOptions(data_dir=DEMO / "train.tar", num_samples=128, workers=0))
    others = evaluation_batches(model, DataOptions(data_dir=DEMO / "test.tar", num_samples=128, workers=0))

    # merging tokens is weighed against the operators: at many tokens most of the saving should come from it
    small = vitcompact.fold(vitcompact.convert(model, images=images, target_macs=0.7, merge_tokens="auto"))
    result = vitcompact.evaluate(small, others, reference=model)
    print(f"cosine {result.cosine:.4f}, same nearest neighbour {result.neighbour_agreement:.2f}")
    print(f"merged: {vitcompact.results(small).plan.merge_tokens or 'no tokens'}")

    with torch.no_grad():
        pictures, _ = next(iter(others))
        features = small.forward_features(pictures)  # type: ignore[operator]
        pooled = small(pictures)
    print(f"tokens {tuple(features.shape)}, pooled {tuple(pooled.shape)}")
    assert result.cosine is not None
    assert result.neighbour_agreement is not None
    return {"cosine": result.cosine, "neighbours": result.neighbour_agreement}


if __name__ == "__main__":
    main()
