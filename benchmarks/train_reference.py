"""Train a reference checkpoint: a small NextViT (or another model of the table of recipes) on CIFAR-10.

    python benchmarks/train_reference.py --model nextvit --train TRAIN.tar --val VAL.tar --out nextvit_cifar10

Writes a directory in timm's hub layout: the moving average of the weights after the last epoch (no epoch is picked on
the validation images), in half precision, and its top-1 as timm loads it. The state is on disk after each epoch;
`--resume auto` goes on from it, with the same images in the same order; then `--epochs` may be another number, and the
schedule goes on at the share of it that is done. `--max-minutes` shortens the schedule so that it ends in time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import timm
import torch
from reference_images import decode
from reference_recipes import RECIPES, Recipe
from reference_trainer import Images, Trainer
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import nn

from vitcompact.analysis import count
from vitcompact.checkpoint import check_out
from vitcompact.errors import UsageError, VitCompactError
from vitcompact.training.interrupt import StopRequest
from vitcompact.utils.files import disk_errors, publish, staged


def write_model(trained: nn.Module, recipe: Recipe, class_names: list[str], args: argparse.Namespace) -> float:
    """Write `args.out` in half precision; its top-1 as timm loads it, with timm's own evaluation transform."""
    model = recipe.create(len(class_names))
    model.load_state_dict(trained.state_dict())
    model.half()
    config = {
        "label_names": class_names,
        "model_args": dict(recipe.model_args),
        "description": f"{recipe.architecture} trained on {args.train.name} at {recipe.input_size} px",
    }
    out = Path(args.out)
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    with disk_errors(out, num_bytes), staged(out) as folder:
        save_for_hf(model, folder, model_config=config, safe_serialization=True, data_config=recipe.data_config)
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes it readable by its owner only
        score = reloaded_top1(folder, args.val, torch.device(args.device))
        path = folder / "config.json"
        facts = {"top1": round(score, 2), "seed": args.seed, "recipe": recipe.to_json(), "init": args.init}
        written = json.loads(path.read_text())
        for key in ("tag", "license"):  # of timm's own weights for this architecture
            written["pretrained_cfg"].pop(key, None)
        path.write_text(json.dumps({**written, "training": facts}, indent=2) + "\n")
        publish(folder, out)
    return score


@torch.inference_mode()
def reloaded_top1(directory: Path, val: Path, device: torch.device) -> float:
    """Percent correct in float32 of the model in `directory`."""
    model = timm.create_model(f"local-dir:{directory}", pretrained=True).to(device).eval()
    transform = create_transform(**resolve_data_config({}, model=model), is_training=False)
    dataset = create_dataset("", root=str(val), transform=transform)
    correct = 0
    for images, labels in torch.utils.data.DataLoader(dataset, batch_size=128):
        correct += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
    return 100 * correct / len(dataset)


def _is_reference(out: str) -> bool:
    """Whether a directory was written by this script: only that may be overwritten."""
    path = Path(out).expanduser() / "config.json"
    return path.is_file() and "training" in json.loads(path.read_text())


def train(args: argparse.Namespace) -> None:
    """The whole run, from images to checkpoint."""
    recipe = RECIPES[args.model] if args.epochs is None else replace(RECIPES[args.model], epochs=args.epochs)
    out = Path(args.out).expanduser().resolve() if args.overwrite and _is_reference(args.out) else check_out(args.out)
    state_path = out.with_name(f"{out.name}.state.safetensors") if args.resume in (None, "auto") else Path(args.resume)
    began = time.monotonic()
    train_images, train_labels, class_names = decode(args.train, args.num_samples, args.seed)
    val_images, val_labels, val_names = decode(args.val)
    if val_names != class_names:
        raise UsageError(f"{args.val} has other classes than {args.train}: {val_names}, not {class_names}")
    device = torch.device(args.device)
    data, val = Images(train_images, train_labels).to(device), Images(val_images, val_labels).to(device)
    torch.manual_seed(args.seed)
    trainer = Trainer(recipe, recipe.create(len(class_names), args.init).to(device), args.seed, args.max_minutes)
    cost = count(trainer.model, (3, recipe.input_size, recipe.input_size))
    print(
        f"{recipe.architecture}: {cost.params / 1e6:.2f} M parameters, {cost.macs / 1e6:.1f} M MACs at "
        f"{recipe.input_size} px; {len(data.labels)} images decoded in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    identity = {
        "recipe": {name: value for name, value in recipe.to_json().items() if name != "epochs"},
        "seed": args.seed,
        "init": args.init,
        "num_samples": args.num_samples,
    }
    if args.resume == "auto" and not state_path.exists():
        print(f"no state at {state_path}: starting anew")
    elif args.resume:
        trainer.restore(state_path, identity)
        print(f"going on after epoch {trainer.epoch}")
    steps = max(1, len(data.labels) // recipe.batch_size)
    with StopRequest() as stop:
        while trainer.epoch < recipe.epochs and trainer.progress(recipe.epochs * steps) < 1.0:
            run_epoch(trainer, data, val, stop, steps)
            trainer.save(state_path, identity)
    minutes = trainer.elapsed() / 60
    score = write_model(trainer.average.module, recipe, class_names, args)
    state_path.unlink(missing_ok=True)
    print(f"top-1 of {out} on {len(val.labels)} images: {score:.2f} %; trained for {minutes:.1f} minutes")


def run_epoch(trainer: Trainer, data: Images, val: Images, stop: StopRequest, steps: int) -> None:
    """One epoch and its line of figures."""
    wall, cpu = time.monotonic(), time.process_time()
    size = trainer.recipe.size_at(trainer.progress(trainer.recipe.epochs * steps))
    loss = trainer.train_epoch(data, stop)
    score = trainer.top1(val, size)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    print(
        f"epoch {trainer.epoch:3}/{trainer.recipe.epochs}  {size} px  loss {loss:.4f}  top-1 {score:.2f} %  "
        f"{wall:.0f} s (CPU {cpu:.0f} s)  {trainer.elapsed() / 60:.1f} min in all",
        flush=True,
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(RECIPES), default="nextvit", help="which recipe")
    parser.add_argument("--train", type=Path, required=True, help="folder or tar of class folders")
    parser.add_argument("--val", type=Path, required=True, help="the same, with the images to judge on")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    parser.add_argument("--init", help="timm name or local-dir:DIR whose weights to start from (default: random)")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--max-minutes", type=float, help="shorten the schedule so that it ends within this wall time")
    parser.add_argument("--num-samples", type=int, help="train on so many images only")
    parser.add_argument("--resume", metavar="PATH|auto", help="go on from a saved state; auto: from OUT's, if any")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for name in ("epochs", "max_minutes", "num_samples"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {value}")
    return args


def main(argv: list[str] | None = None) -> int:
    try:
        train(parse_args(argv))
    except VitCompactError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
