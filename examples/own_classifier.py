"""A classifier with its own classes: made smaller on its own images, saved, loaded by timm, asked about a picture.

    python examples/own_classifier.py [CHECKPOINT IMAGES LABELLED_IMAGES]

Without arguments, on the demo's model of handwritten digits and its images, offline, in a few seconds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import timm
import torch

import vitcompact
from vitcompact.data import CalibrationImages, DataOptions, evaluation_batches

DEMO = Path(vitcompact.__file__).parent / "demo" / "assets"


def main(
    checkpoint: str = f"{DEMO}/vit_digits", train: str = f"{DEMO}/train.tar", val: str = f"{DEMO}/test.tar"
) -> dict[str, float]:
    """Top-1 before and after, in percent."""
    model = vitcompact.load_source(checkpoint).model  # with its own classes, sizes and preparation of images
    images = CalibrationImages(model, DataOptions(data_dir=train, num_samples=128, workers=0))  # no labels needed
    labelled = evaluation_batches(model, DataOptions(data_dir=val, batch_size=256, workers=0))

    small = vitcompact.fold(vitcompact.convert(model, images=images, target_macs=0.7))
    result = vitcompact.evaluate(small, labelled, reference=model)
    print(f"top-1 {result.reference_top1:.2f} % before, {result.top1:.2f} % after; agreement {result.agreement:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        out = vitcompact.save(small, Path(folder) / "out")
        again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()  # anywhere, after `import vitcompact`
        pictures, labels = next(iter(labelled))
        with torch.no_grad():
            guess = int(again(pictures[:1]).argmax())
        print(f"the first picture is class {int(labels[0])}, the small model says {guess}")
    assert result.reference_top1 is not None
    assert result.top1 is not None
    return {"before": result.reference_top1, "after": result.top1}


if __name__ == "__main__":
    main(*sys.argv[1:4])
