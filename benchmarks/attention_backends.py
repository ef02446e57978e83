"""Which attention backend is fastest where: the core of a layer with half of its heads hallucinated, every backend.

    python benchmarks/attention_backends.py [--heads 6 --dim 64 --batch 16 --pairs 15]

Prints, per number of tokens and dtype, each backend's median time relative to timm's fused attention over all heads
(smaller is better), from one interleaved run. `layers/backends.py` chooses by these figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from vitcompact.layers.backends import BACKENDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=[37, 197, 257, 577, 1025])
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{'dtype':9} {'tokens':>6}  " + "".join(f"{name:>9}" for name in BACKENDS))
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in args.tokens:
            shape = (args.batch, args.heads, tokens, args.dim)
            q, k, v = (torch.randn(shape, dtype=dtype) for _ in range(3))
            half = args.heads // 2
            wide = torch.randn(args.batch, half, tokens, 2 * args.dim, dtype=dtype)
            runs: dict[str, Callable[[], torch.Tensor]] = {"fused": partial(F.scaled_dot_product_attention, q, k, v)}
            how = {"scale": args.dim**-0.5, "mask": None, "causal": False, "dropout": 0.0}
            for name, run in BACKENDS.items():
                runs[name] = partial(run, q[:, :half], k[:, :half], wide, **how)
            times: dict[str, list[float]] = {name: [] for name in runs}
            with torch.inference_mode():
                for number in range(args.pairs + 3):
                    for name, call in runs.items():
                        began = time.perf_counter()
                        call()
                        if number >= 3:
                            times[name].append(time.perf_counter() - began)
            fused = statistics.median(times["fused"])
            row = "".join(f"{statistics.median(times[name]) / fused:9.2f}" for name in BACKENDS)
            print(f"{str(dtype).removeprefix('torch.'):9} {tokens:6}  {row}", flush=True)


if __name__ == "__main__":
    main()
