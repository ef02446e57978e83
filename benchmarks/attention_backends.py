"""Which attention backend is fastest where: the core of a layer with half of its heads hallucinated, every backend.

    python benchmarks/attention_backends.py [--heads 6 --dim 64 --batch 16 --pairs 15]
    python benchmarks/attention_backends.py --maps 6 --widths 48 40    # every head has a map, but thin ones
    python benchmarks/attention_backends.py --bias --tokens 49 --heads 3 --maps 2 --dim 32 --batch 64   # windows
    python benchmarks/attention_backends.py --device cuda --tokens 197 257 1370 4097

Prints, per number of tokens and dtype, each backend's median time relative to timm's fused attention over all heads
(smaller is better), from one interleaved run. `layers/backends.py` chooses by these figures; *auto* is its choice. On
CUDA torch's own kernels are also asked for by name, and a compiled flex attention; a kernel that does not take such
shapes has a dash.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from vitcompact.layers.backends import BACKENDS, attend, padded
from vitcompact.utils.device import synchronise

Run = Callable[..., Tensor]


def by_kernel(kernel: SDPBackend, run: Run, *args: Any, **how: Any) -> Tensor:
    """`run` with one of torch's own kernels."""
    with sdpa_kernel(kernel):
        return run(*args, **how)


def sliced(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """One fused call whose heads are the slices of the wide V: the maps are made once for each."""
    slices = v.shape[-1] // q.shape[-1]
    q, k = (t.repeat_interleave(slices, 1) for t in (q, k))
    v = v.unflatten(-1, (slices, -1)).transpose(2, 3).flatten(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, scale=how["scale"])
    return out.unflatten(1, (-1, slices)).transpose(2, 3).flatten(3)


def others(device: str, biased: bool) -> dict[str, Run]:
    """Ways that no layer takes, for comparison."""
    if device == "cpu":
        return {} if biased else {"sliced": sliced}
    flex = torch.compile(flex_attention, dynamic=False)
    named = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    found: dict[str, Run] = {name: partial(by_kernel, kernel, BACKENDS["sdpa"]) for name, kernel in named.items()}
    if biased:
        return {**found, "padeff": partial(by_kernel, SDPBackend.EFFICIENT_ATTENTION, padded)}
    found["padflash"] = partial(by_kernel, SDPBackend.FLASH_ATTENTION, padded)
    return {**found, "sliced": sliced, "flex": lambda q, k, v, **how: flex(q, k, v, scale=how["scale"])}


def seconds(call: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """Mean time of a call that has finished."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - began) / repeats


def measure(runs: dict[str, Callable[[], Tensor]], device: torch.device, pairs: int) -> dict[str, float]:
    """Median seconds of every way that takes these shapes and gives what the first one gives."""
    repeats = 1 if device.type == "cpu" else 20
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        for name, call in list(runs.items()):
            try:
                seconds(call, device, 3)
            except Exception:
                del runs[name]
        names, turns = list(runs), random.Random(0)
        for _ in range(pairs):
            turns.shuffle(names)  # whoever comes after the fused call finds a cold cache
            for name in names:
                times.setdefault(name, []).append(seconds(runs[name], device, repeats))
    return {name: statistics.median(laps) for name, laps in times.items()}


def heads_of(batch: int, dtype: torch.dtype, device: torch.device, tokens: int, heads: int, dim: int) -> Tensor:
    """Random queries, keys or values as a layer makes them, `(batch, heads, tokens, dim)` with heads behind tokens."""
    made = torch.randn(batch, tokens, heads * dim, dtype=dtype, device=device)
    return made.unflatten(-1, (heads, dim)).transpose(1, 2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--maps", type=int, help="heads that keep their map; default: half")
    parser.add_argument("--widths", type=int, nargs=2, metavar=("QK", "V"), help="of a map; default: dim, twice that")
    parser.add_argument("--keys", type=int, help="of every length; default: one a token")
    parser.add_argument("--bias", action="store_true", help="added to every map, the same for all images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[37, 197, 257, 577, 1025])
    args = parser.parse_args()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", category=UserWarning)  # why a kernel does not take such shapes
    device = torch.device(args.device)
    ways: dict[str, Run] = {"auto": partial(attend, "auto"), **BACKENDS, **others(device.type, args.bias)}
    print(f"{'dtype':9} {'tokens':>6} {'fused us':>9}" + "".join(f"{name:>10}" for name in ways))
    for dtype in (getattr(torch, name) for name in args.dtypes):
        for tokens in args.tokens:
            keys, maps = args.keys or tokens, args.maps or args.heads // 2
            narrow, wide = args.widths or (args.dim, 2 * args.dim)
            made = partial(heads_of, args.batch, dtype, device)
            q, k, v = (made(length, args.heads, args.dim) for length in (tokens, keys, keys))
            fewer = made(tokens, maps, narrow), made(keys, maps, narrow), made(keys, maps, wide)
            bias = torch.randn(1, args.heads, tokens, keys, dtype=dtype, device=device) if args.bias else None
            fused = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=bias)
            runs: dict[str, Callable[[], Tensor]] = {"fused": fused}
            mask = None if bias is None else bias[:, :maps]
            how = {"scale": args.dim**-0.5, "mask": mask, "causal": False, "dropout": 0.0}
            for name, run in ways.items():
                runs[name] = partial(run, *fewer, **how)
            times = measure(runs, device, args.pairs)
            cells = (f"{times[name] / times['fused']:10.2f}" if name in times else f"{'-':>10}" for name in ways)
            row = f"{str(dtype).removeprefix('torch.'):9} {tokens:6} {times['fused'] * 1e6:9.0f}" + "".join(cells)
            print(row, flush=True)


if __name__ == "__main__":
    main()
