"""Peak memory and time of a large model on the CPU: `convert` for a budget, `fold`, and loading what came out.

    python benchmarks/large_models.py --data-dir IMAGES [--model vit_large_patch14_clip_224] [--workdir DIR]

Linux. Random weights. Each stage is a command in a process of its own; counted is all of its memory, imports included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence

FORWARD = """
import sys, torch, vitcompact
model = vitcompact.load(sys.argv[1]).eval()
with torch.inference_mode():
    out = model(torch.zeros(1, *model.pretrained_cfg["input_size"]))
assert out.isfinite().all()
"""


def measured(words: Sequence[str]) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and peak resident memory in GB (1e9 bytes) of a command.

    Raises:
        SystemExit: the command failed.
    """
    start = time.monotonic()
    _, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, words[0], list(words)), 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: exit code {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--model", default="vit_large_patch14_clip_224")
    parser.add_argument("--target-macs", default="0.7", help="share of the MACs, or pair for half the heads and ranks")
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="of convert; its memory is not counted")
    parser.add_argument("--workdir", default=tempfile.gettempdir(), help="where the two results go, a few GB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.workdir) as folder:
        ours, converted, folded = [sys.executable, "-m", "vitcompact"], f"{folder}/converted", f"{folder}/folded"
        images = ["--data-dir", args.data_dir, "--num-samples", str(args.num_samples)]
        images += ["--device", args.device]
        wanted = ["--method", "pair"] if args.target_macs == "pair" else ["--target-macs", args.target_macs]
        stages = {
            "convert": [*ours, "convert", args.model, converted, "--random-weights", *images, *wanted],
            "fold": [*ours, "fold", converted, folded],
            "load, one image": [sys.executable, "-c", FORWARD, folded],
        }
        rows = [f"| {args.model} | seconds | of processor | seconds an image | peak, GB |", "|---|---:|---:|---:|---:|"]
        for name, words in stages.items():
            seconds, busy, peak = measured(words)
            each = f"{seconds / args.num_samples:.1f}" if name == "convert" else ""
            rows.append(f"| {name} | {seconds:.0f} | {busy:.0f} | {each} | {peak:.1f} |")
        print("\n".join(rows))


if __name__ == "__main__":
    main()
