"""finetune in one process and in several: its speed beside a bare loop's, and what is left after kills at any moment.

    python benchmarks/processes.py speed            # a table; one core a process
    python benchmarks/processes.py round --device cuda --amp --whole --batch-size 128   # one round, on a GPU
    python benchmarks/processes.py kills --kills 30 # runs of one and two processes, killed at random and resumed
    python benchmarks/processes.py cache            # processor time of a step with and without --cache-teacher
    python benchmarks/processes.py memory           # of two processes that train ViT-B, with and without --fsdp

Processes are started by torchrun. Models have random weights, images are noise.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

import vitcompact
from vitcompact.training import TensorBatches, TrainOptions, finetune
from vitcompact.training.course import COURSE, STEPS_NAME, losses
from vitcompact.training.distill import Distiller, amp_dtype, block_names
from vitcompact.training.state import STATE_NAME, load_state
from vitcompact.utils.device import synchronise
from vitcompact.utils.launch import place_of
from vitcompact.utils.processes import ALONE, Processes, joined
from vitcompact.utils.progress import Silent

MODEL = {"model_name": "vit_small_patch16_224", "num_classes": 10}
SMALLER = {"img_size": 112, "depth": 3}
"""What a CPU trains of that model."""
TINY = ("--model-kwargs", "depth=2")
WARMUP = 2
"""Steps that are not timed."""


def pair(images: torch.Tensor, device: str = "cpu", **sizes: int) -> tuple[nn.Module, nn.Module]:
    """A teacher, and the student that the pair makes of it."""
    torch.manual_seed(0)
    teacher = timm.create_model(**MODEL, **sizes).eval()
    return teacher, vitcompact.convert(teacher, images=images[:32], ratio=0.5, rank_ratio=0.5, device=device)


def bare(
    teacher: nn.Module, student: nn.Module, images: torch.Tensor, steps: int, batch: int, device: str, amp: bool
) -> float:
    """Seconds of the least that a step takes: teacher forward, student forward and backward, AdamW."""
    options, place = TrainOptions(steps=steps, amp=amp), torch.device(device)
    teacher, student = copy.deepcopy(teacher).to(place), copy.deepcopy(student).to(place)
    distiller = Distiller(student.train(False), teacher, block_names(teacher), options, amp_dtype(options, place))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    images, labels, start = images.to(place), torch.zeros(batch, dtype=torch.int64, device=place), 0.0
    for step in range(WARMUP + steps):
        if step == WARMUP:
            synchronise(place)
            start = time.monotonic()
        distiller.loss(images[(step % 4) * batch : (step % 4 + 1) * batch], labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    synchronise(place)
    distiller.close()
    return time.monotonic() - start


def ours(
    teacher: nn.Module,
    student: nn.Module,
    images: torch.Tensor,
    steps: int,
    batch: int,
    device: str,
    amp: bool,
    processes: Processes,
) -> float:
    """Seconds that so many steps more of `finetune` take: what comes before and after the loop is in both runs."""
    spent = []
    for count in (WARMUP, WARMUP + steps):
        stream, start = TensorBatches(images, batch_size=batch), time.monotonic()
        options = TrainOptions(steps=count, amp=amp, lr=1e-5)
        finetune(student, teacher, stream, options=options, device=device, processes=processes)
        spent.append(time.monotonic() - start)
    return spent[1] - spent[0]


def timed(steps: int, batch: int, device: str, amp: bool, whole: bool, processes: Processes) -> None:
    """Print images a second, of the bare loop too where there is one process; `whole`: not cut to a CPU's size."""
    torch.set_num_threads(1)
    side = 224 if whole else SMALLER["img_size"]
    images = torch.randn(4 * batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    teacher, student = pair(images, device, **({} if whole else SMALLER))
    line = [f"{processes.world} process(es)"]
    if not processes.several:
        line.append(f"bare {steps * batch / bare(teacher, student, images, steps, batch, device, amp):.1f}")
    spent = ours(teacher, student, images, steps, batch, device, amp, processes)
    line.append(f"finetune {steps * batch / spent:.1f} images/s")
    if processes.first:
        print("  ".join(line), flush=True)


def speed(rounds: int, steps: int, batch: int) -> None:
    """One process and two, in turn."""
    words = [__file__, "round", "--steps", str(steps), "--batch-size", str(batch)]
    for _ in range(rounds):
        subprocess.run([sys.executable, *words], check=True)
        subprocess.run([*torchrun(2), *words], check=True)


LOSSES: dict[str, dict[str, Any]] = {"blocks": {}, "logits": {"block_weight": 0.0, "logit_weight": 1.0}}


def cached(rounds: int, steps: int, batch: int) -> None:
    """Print the processor time of a step, all of them after the first epoch, for block outputs and for logits."""
    torch.set_num_threads(1)
    images = torch.randn(4 * batch, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    teacher, student = pair(images)
    for what, more in [*LOSSES.items()] * rounds:
        spent = [
            _step_seconds(teacher, student, images, steps, batch, {**more, "cache_teacher": on}) for on in (False, True)
        ]
        print(f"{what}: {spent[0]:.3f} s a step, {spent[1]:.3f} s with answers kept", flush=True)


def _step_seconds(
    teacher: nn.Module, student: nn.Module, images: torch.Tensor, steps: int, batch: int, more: dict[str, Any]
) -> float:
    seconds = []
    for count in (4, 4 + steps):
        options = TrainOptions(steps=count, amp=False, lr=1e-5, **more)
        with tempfile.TemporaryDirectory() as folder:
            stream, start = TensorBatches(images, batch_size=batch), time.process_time()
            finetune(student, teacher, stream, options=options, state_dir=folder)
            seconds.append(time.process_time() - start)
    return (seconds[1] - seconds[0]) / steps


class Memory(Silent):
    """A progress receiver that keeps how many bytes the tensors of this process have after each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        tensors = [
            each for each in gc.get_objects() if isinstance(each, torch.Tensor) and not isinstance(each, DTensor)
        ]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        self.seen.append(sum(storages.values()))


def memory(fsdp: bool, processes: Processes) -> None:
    """Print what each process holds between steps of training ViT-B towards another, beside the models it was given.

    Whole, the given original is the one that runs, and counts; in parts it is not used any more.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher, student = (timm.create_model("vit_base_patch16_224", img_size=112, num_classes=10).eval() for _ in "12")
    given = sum(weight.nbytes for weight in student.parameters()) * (2 if fsdp else 1)
    images, seen, options = torch.randn(8, 3, 112, 112), Memory(), TrainOptions(steps=3, amp=False, fsdp=fsdp)
    finetune(student, teacher, TensorBatches(images, batch_size=2), options=options, processes=processes, progress=seen)
    found = processes.gathered((max(seen.seen) - given) / 1e9)
    if processes.first:
        print(f"{'in parts' if fsdp else 'whole'}: {' and '.join(f'{each:.2f}' for each in found)} GB", flush=True)


def torchrun(world: int) -> list[str]:
    """The launcher, for so many processes on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]


def kills(count: int, worlds: Sequence[int], seed: int) -> None:
    """Kill runs at random times, resume them, and compare what they end in with a run that was left alone."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 40, 3), dtype=np.uint8)
        (folder / "images").mkdir()
        for number, each in enumerate(pixels):
            Image.fromarray(each).save(folder / "images" / f"{number}.png")
        torch.manual_seed(0)
        weights = folder / "w.pth"
        torch.save(timm.create_model("test_vit", num_classes=2, img_size=32, depth=2).state_dict(), weights)
        data = ["--data-dir", str(folder / "images")]
        vit = [str(weights), str(folder / "compact"), "--model", "test_vit", *TINY, "--method", "pair"]
        subprocess.run([sys.executable, "-m", "vitcompact", "convert", *vit, *data, "-q"], check=True, stdout=-3)
        for world in worlds:
            start = torchrun(world) if world > 1 else [sys.executable]
            words = [*start, __file__, "train", str(folder / "compact"), str(folder / "images")]
            killed(words, folder, world, count // len(worlds), chance)


def killed(words: Sequence[str], folder: Path, world: int, count: int, chance: random.Random) -> None:
    """So many kills of one number of processes."""
    alone, again = folder / f"alone-{world}", folder / f"again-{world}"
    began = time.monotonic()
    subprocess.run([*words, str(alone)], check=True, stdout=-3, stderr=-3)
    lasts, done, unread, orphans, steps = time.monotonic() - began, 0, 0, 0, []
    while done < count:
        run = subprocess.Popen([*words, str(again)], stdout=-3, stderr=-3, start_new_session=True)
        try:
            run.wait(chance.uniform(0.4, 1.0) * lasts)
            shutil.rmtree(again.with_name(f"{again.name}-state"), ignore_errors=True)
            shutil.rmtree(again, ignore_errors=True)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            done += 1
            orphans += left_behind(str(again))
            state = again.with_name(f"{again.name}-state") / STATE_NAME
            unread += sum(not whole_lines(state.with_name(name)) for name in COURSE)
            if state.exists():
                try:
                    steps.append(load_state(state).values["plan"]["step"])
                except vitcompact.VitCompactError:
                    unread += 1
    subprocess.run([*words, str(again)], check=True, stdout=-3, stderr=-3)
    first, second = (load_file(each / "model.safetensors") for each in (alone, again))
    same = all(torch.equal(first[name], second[name]) for name in first)
    told = losses(alone / STEPS_NAME) == losses(again / STEPS_NAME)
    print(
        f"{world} process(es): {done} kills, at steps {steps}; files that cannot be read {unread}, processes left "
        f"{orphans}, the same bits in the end: {same}, the same losses of the same steps told: {told}",
        flush=True,
    )


def whole_lines(path: Path) -> bool:
    """Whether a file of lines ends with one, or is empty or not there."""
    return not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")


def left_behind(out: str) -> bool:
    """Whether processes that torchrun had started outlive it for half a minute."""
    until = time.monotonic() + 30
    while subprocess.run(["pgrep", "-f", f"train .* {out}$"], stdout=-3).returncode == 0:
        if time.monotonic() > until:
            return True
        time.sleep(0.5)
    return False


def train(compact: str, images: str, out: str) -> int:
    """What is killed: `finetune`, with a state as often as the disk allows."""
    from vitcompact.cli.app import main
    from vitcompact.training import loop

    loop._SAVE_SHARE = 0
    TrainOptions.__dataclass_fields__["save_minutes"].default = 1e-9
    loop.Loop._save_sometimes = loop.Loop._save  # type: ignore[assignment, method-assign]
    words = ["finetune", compact, out, "--data-dir", images, "--steps", "400", "-b", "8", "--resume", "auto"]
    return main([*words, "--overwrite"])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["speed", "kills", "cache", "memory", "round", "train"])
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu", help="of a round")
    parser.add_argument("--amp", action="store_true", help="a round in bfloat16")
    parser.add_argument("--whole", action="store_true", help="a round of the whole model, at 224 px")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of the runs that are killed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    place = place_of(os.environ)
    if args.task == "train":
        sys.exit(train(*args.paths))
    elif args.task == "speed":
        speed(args.rounds, args.steps, args.batch_size)
    elif args.task == "cache":
        cached(args.rounds, args.steps, args.batch_size)
    elif args.task == "kills":
        kills(args.kills, args.processes, args.seed)
    elif args.task == "memory" and place is None:
        for kind in ("whole", "parts"):
            subprocess.run([*torchrun(2), __file__, "memory", kind], check=True)
    elif place is None:
        timed(args.steps, args.batch_size, args.device, args.amp, args.whole, ALONE)
    else:
        with joined(place, 600) as processes:
            if args.task == "memory":
                return memory(args.paths == ["parts"], processes)
            timed(args.steps, args.batch_size, args.device, args.amp, args.whole, processes)


if __name__ == "__main__":
    main()
