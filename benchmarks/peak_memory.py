"""Peak memory of `convert` with reconstruction against the model's own forward pass at the same batch size.

    python benchmarks/peak_memory.py CKPT --calibration TRAIN.tar

Linux, CPU. Each case runs in a process of its own; counted is the largest resident memory above what the process held
with its imports and images loaded, the model itself included. `convert` may add the cache (`--cache-gb`) to that.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

import vitcompact
from vitcompact.data import CalibrationImages, DataOptions

CASES = {
    "forward pass": None,
    "convert, the pair": {},
    "convert, the pair, reconstruct": {"reconstruct": 20},
    "convert, budget of 80 % of the MACs, reconstruct": {"target_macs": 0.8, "reconstruct": 20},
}


def status(field: str) -> float:
    """A figure of this process's memory in MB (1e6 bytes)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field + ":"))


def measure(args: argparse.Namespace) -> float:
    """Peak memory of one case in MB above what was there before the model."""
    model = vitcompact.load_source(args.checkpoint).model.float().eval()
    options = DataOptions(data_dir=args.calibration, num_samples=args.num_images, batch_size=args.batch_size)
    images = torch.cat(list(CalibrationImages(model, options)))
    with torch.inference_mode():
        model(images[:2])  # libraries load their kernels
    bytes_of_model = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 1e6
    before = status("VmRSS") - bytes_of_model
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    settings = CASES[args.case]
    if settings is None:
        with torch.inference_mode():
            for batch in images.split(args.batch_size):
                model(batch)
    else:
        vitcompact.convert(model, images=images, batch_size=args.batch_size, cache_gb=args.cache_gb, **settings)
    return status("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="any SOURCE")
    parser.add_argument("--calibration", required=True, help="images: a folder or a .tar")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cache-gb", type=float, default=0.1)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(measure(args))
        return
    cache = 1000 * args.cache_gb
    print(f"| batch of {args.batch_size} | peak, MB | without {cache:.0f} MB of cache, over the forward pass |")
    print("|---|---:|---:|")
    forward = 0.0
    for case in CASES:
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        forward = forward or peak
        ratio = "1" if case == next(iter(CASES)) else f"{(peak - cache) / forward:.2f}"
        print(f"| {case} | {peak:.0f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
