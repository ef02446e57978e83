"""Train the small ViT that `vitcompact demo` compacts, and write everything that the package bundles for it.

    pip install '.[demo-training]' && python benchmarks/train_demo.py

Reads scikit-learn's copy of the handwritten digits (8x8 pixels, no download), drops exact duplicates, splits them once
into training and held-out images (stratified, seeded), trains on CPU for a fixed number of epochs and keeps the last
averaged weights: no epoch is picked on the held-out images. Result: a model directory in timm's hub layout, two tar
files of PNGs in class folders, and a README with the figures measured.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.models import save_for_hf
from timm.utils import ModelEmaV3
from torch import Tensor, nn

ASSETS = Path(__file__).resolve().parents[1] / "vitcompact" / "demo" / "assets"
ARCHITECTURE = "vit_tiny_patch16_224"  # timm's plain pre-norm ViT; the arguments below set its size
MODEL_ARGS = {"img_size": 32, "embed_dim": 64, "depth": 6, "num_classes": 10}
PREPROCESSING = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
NUM_PIXEL_LEVELS = 16  # the data set's grey values run from 0 to 16


def load_unique_digits() -> tuple[np.ndarray, np.ndarray, int]:
    """8-bit grey images `(n, 8, 8)` without exact duplicates, labels `(n,)`, and how many images there were in all."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / NUM_PIXEL_LEVELS)).astype(np.uint8)
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    first.sort()
    return images[first], digits.target[first], len(images)


def split_by_class(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and held-out images, `fraction` of each class held out."""
    train, held_out = [], []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = round(fraction * len(members))
        held_out.append(members[:cut])
        train.append(members[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def write_tar(path: Path, images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> None:
    """PNGs named `label/index.png`, sorted, without times or owners: the same images give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for label, index in sorted((int(labels[i]), int(i)) for i in indices):
            buffer = io.BytesIO()
            Image.fromarray(images[index]).save(buffer, format="PNG", optimize=True)
            member = tarfile.TarInfo(f"{label}/{index:04d}.png")
            member.size = buffer.tell()
            member.mode = 0o644
            buffer.seek(0)
            tar.addfile(member, buffer)


def create_model(args: argparse.Namespace, attn_drop_rate: float = 0.0) -> nn.Module:
    """The untrained model with its preprocessing."""
    shape = {**MODEL_ARGS, "patch_size": args.patch_size, "num_heads": args.num_heads}
    model = timm.create_model(ARCHITECTURE, pretrained=False, attn_drop_rate=attn_drop_rate, **shape)
    model.pretrained_cfg = {**model.pretrained_cfg, **PREPROCESSING, "tag": "digits"}
    return model


def to_model_input(images: np.ndarray, model: nn.Module) -> Tensor:
    """What timm's evaluation transform makes of the images: `(n, 3, 32, 32)`, normalised."""
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    return torch.stack([transform(Image.fromarray(image).convert("RGB")) for image in images])


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image slightly rotated, sheared, scaled and shifted: handwriting varies more than the training images."""
    n = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle, shear, shift_x, shift_y = uniform(0.22), uniform(0.15), uniform(0.14), uniform(0.14)
    scale_x, scale_y = 1 + uniform(0.12), 1 + uniform(0.12)
    first = torch.stack([scale_x * angle.cos(), -scale_y * (angle + shear).sin(), shift_x], dim=1)
    second = torch.stack([scale_x * angle.sin(), scale_y * (angle + shear).cos(), shift_y], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    background = images.min()  # grid_sample pads with zeros; the digits' background is not zero once normalised
    return F.grid_sample(images - background, grid, align_corners=False) + background


def train(model: nn.Module, images: Tensor, labels: Tensor, args: argparse.Namespace) -> nn.Module:
    """AdamW, one-cycle cosine, label smoothing; returns the moving average of the weights after the last epoch."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    steps = args.epochs * (len(images) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    average = ModelEmaV3(model, decay=0.99)
    started = time.monotonic()
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        order = torch.randperm(len(images), generator=generator)
        batches = [batch for batch in order.split(args.batch_size) if len(batch) == args.batch_size]
        for batch in batches:
            logits = model(augment(images[batch], generator))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update(model)
            total += loss.item()
        print(f"epoch {epoch + 1}/{args.epochs}: loss {total / len(batches):.4f}, {time.monotonic() - started:.0f} s")
    return average.module


@torch.inference_mode()
def top1(model_dir: Path, tar: Path) -> float:
    """Percent correct on a tar of class folders, of the model as timm loads it from its directory."""
    model = timm.create_model(f"local-dir:{model_dir}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    dataset = create_dataset("", root=str(tar), transform=transform)
    correct = 0
    for images, labels in torch.utils.data.DataLoader(dataset, batch_size=256):
        correct += int((model(images).argmax(dim=1) == labels).sum())
    return 100 * correct / len(dataset)


def write_model(model: nn.Module, directory: Path) -> None:
    """The weights in half precision in timm's hub layout."""
    config = {
        "label_names": [str(digit) for digit in range(10)],
        "description": "Small ViT trained from scratch on handwritten digits; the checkpoint of `vitcompact demo`",
    }
    save_for_hf(model.half(), directory, model_config=config, safe_serialization=True, data_config=PREPROCESSING)
    (directory / "model.safetensors").chmod(0o644)  # safetensors writes it readable by its owner only


def record(directory: Path, **facts: object) -> None:
    """Adds `facts` to the model's config.json under `training` (timm passes over keys it does not know)."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["training"] = facts
    path.write_text(json.dumps(config, indent=2) + "\n")


README = """# Assets of `vitcompact demo`

| file | what |
|---|---|
| `vit_digits/` | a ViT in timm's hub layout: {embed_dim} channels, {depth} blocks, {num_heads} heads, \
{img_size} px, patches of {patch_size} px, {params:,} parameters in half precision |
| `train.tar` | {num_bundled} of the {num_train} images it was trained on; the demo uses them without their labels |
| `test.tar` | all {num_test} held-out images |

Top-1 on `test.tar`: **{top1:.2f} %** ({correct} of {num_test}); the same figure is in `vit_digits/config.json`.

## Images

*Optical Recognition of Handwritten Digits*, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
<https://doi.org/10.24432/C50P49>, licensed under [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).
Taken from scikit-learn (`sklearn.datasets.load_digits`: the {num_all} images of the set's test part, written by 13
people). Changes made: grey values 0..16 scaled to 0..255 and rounded; stored as 8x8 PNGs in class folders, named after
their index; {num_duplicates} exact duplicates dropped. Training and held-out images share writers but no image.

## Training

    pip install '.[demo-training]'
    python benchmarks/train_demo.py {command}

{held_out:.0%} of each class was held out (stratified, seed {seed}), the rest trained on from scratch with small random
affine distortions: AdamW at {lr}, weight decay {weight_decay}, attention dropout {attn_drop}, one-cycle cosine, label
smoothing 0.1, the weights' moving average after the last epoch. No epoch was picked on the held-out images, but patch
sizes were compared on them. {minutes:.1f} minutes with {threads} CPU thread(s), torch {torch}, timm {timm}. The same
seed gives the same split anywhere; the weights differ slightly between machines and versions.

SHA-256 of `model.safetensors`: `{sha256}`
"""


def build(out: Path, args: argparse.Namespace) -> None:
    """Trains, measures and writes all assets into the empty directory `out`."""
    images, labels, num_loaded = load_unique_digits()
    rng = np.random.default_rng(args.seed)
    train_indices, test_indices = split_by_class(labels, args.held_out, rng)
    bundled = rng.choice(train_indices, size=args.bundled, replace=False)
    write_tar(out / "train.tar", images, labels, bundled)
    write_tar(out / "test.tar", images, labels, test_indices)

    torch.manual_seed(args.seed)
    model = create_model(args, attn_drop_rate=args.attn_drop)
    started = time.monotonic()
    inputs = to_model_input(images[train_indices], model)
    average = train(model, inputs, torch.from_numpy(labels[train_indices]), args)
    trained = create_model(args)  # the checkpoint records no dropout
    trained.load_state_dict(average.state_dict())
    minutes = (time.monotonic() - started) / 60

    directory = out / "vit_digits"
    write_model(trained, directory)
    accuracy = top1(directory, out / "test.tar")
    print(f"top-1 on {len(test_indices)} held-out images: {accuracy:.2f} %")
    record(directory, dataset="UCI handwritten digits (scikit-learn)", top1=round(accuracy, 2), seed=args.seed)
    text = README.format(
        **MODEL_ARGS,
        **vars(args),
        command=(
            f"--seed {args.seed} --epochs {args.epochs} --batch-size {args.batch_size} --lr {args.lr} \\\n"
            f"        --weight-decay {args.weight_decay} --attn-drop {args.attn_drop} "
            f"--patch-size {args.patch_size} --num-heads {args.num_heads}"
        ),
        params=sum(p.numel() for p in trained.parameters()),
        num_bundled=len(bundled),
        num_train=len(train_indices),
        num_test=len(test_indices),
        num_all=num_loaded,
        num_duplicates=num_loaded - len(images),
        top1=accuracy,
        correct=round(accuracy * len(test_indices) / 100),
        minutes=minutes,
        torch=torch.__version__,
        timm=timm.__version__,
        sha256=hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest(),
    )
    (out / "README.md").write_text(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and write the assets of `vitcompact demo`.")
    parser.add_argument("--out", type=Path, default=ASSETS, help="directory to write to (its assets are replaced)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--attn-drop", type=float, default=0.0, help="dropout of attention weights while training")
    parser.add_argument("--patch-size", type=int, default=4, help="pixels of a patch's side, of 32")
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--held-out", type=float, default=0.3, help="share of each class that is never trained on")
    parser.add_argument("--bundled", type=int, default=512, help="training images that go into train.tar")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as temporary:
        build(Path(temporary), args)
        shutil.rmtree(args.out / "vit_digits", ignore_errors=True)
        for item in Path(temporary).iterdir():
            os.replace(item, args.out / item.name)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"wrote {args.out}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
