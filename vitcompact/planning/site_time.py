"""How long every structure that a site could have takes, measured on the module alone with the calls it really gets.

Time is no simple function of sizes: heads of unequal widths miss fused attention kernels, two thin products are slower
than one of as many multiplications. So each option is built as it runs once folded and raced against the whole module.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitcompact.models import Site
from vitcompact.models.latency import Call, Host
from vitcompact.planning.combinations import Choice, contenders, structures_of, thinned
from vitcompact.planning.serving import USUAL, Serving
from vitcompact.planning.site_structure import Operators, alike, built, recorded
from vitcompact.utils.progress import Progress, silent
from vitcompact.utils.timing import relative_times

logger = logging.getLogger("vitcompact")

SECONDS, FORWARDS = 30.0, 60
"""Time spent on timing: about so many seconds, or so many forward passes of the model where those take longer."""
CONVERTED, FEWEST = 96, 8
"""Options that are converted for a host that wants it, in all, but at least so many of each structure."""
SCREENING = 3
"""Rounds after which only options that may be worth it are timed further."""
MARGIN = 0.05
"""How much slower than a less costly option one may look and still be timed further."""
MIN_ROUNDS, MAX_ROUNDS = 7, 31
CHUNK = 8
"""Modules that race in one round, the whole module first: neighbours in time share what else the machine does."""


@dataclass(frozen=True)
class SiteTimes:
    """Share of the model's time that each measured structure of each site saves, by `alike` operators, run so."""

    saved: Mapping[str, Mapping[Operators, float]]
    serving: Serving = USUAL

    def saving(self, name: str, operators: Operators) -> float | None:
        """What these operators save at a site, or None where that was not measured."""
        return self.saved[name].get(alike(operators))


@dataclass(frozen=True)
class _Group:
    """Sites of one structure with everything that can be done to any of them."""

    module: nn.Module
    call: Call
    choices: Mapping[Site, Sequence[Choice]]
    seconds: float
    share: float

    @property
    def site(self) -> Site:
        return next(iter(self.choices))

    @property
    def rows(self) -> list[Sequence[Choice]]:
        return list(self.choices.values())


def time_sites(
    original: nn.Module,
    choices: Mapping[Site, Sequence[Choice]],
    serving: Serving = USUAL,
    progress: Progress = silent,
) -> SiteTimes:
    """Time what can be done to every site of a model; sites of the same structure share one measurement.

    Where there are too many options for the time allowed, those of a coarser grid of sizes are timed; options that a
    first look shows to be both slower and more costly than another are left out (of a host that converts all are
    timed at once, since running them takes less time than a second conversion).

    Args:
        serving: how they are run, on the device of `original`.

    Raises:
        UsageError: the host cannot express a layer.
    """
    began, host, images = time.monotonic(), serving.host, serving.images(original)
    names = [site.name for site in choices]
    structures, calls = recorded(original, names, images)
    modules = {key: original.get_submodule(next(n for n in names if structures[n] == key)) for key in calls}
    total, shares = _shares(original, Call((images,), whole=True), modules, calls, host)
    groups = [
        _Group(
            *(modules[key], call, {s: c for s, c in choices.items() if structures[s.name] == key}),
            *(total * share, share),
        )
        for (key, call), share in zip(calls.items(), shares, strict=True)
    ]
    allowance = max(SECONDS, FORWARDS * total) / 2
    wanted = [structures_of(group.rows) for group in groups]
    fit = min(1.0, allowance / max(_demand(groups, wanted, SCREENING + 1), 1e-12))
    rooms = [int(len(options) * fit) for options in wanted]
    if host.converts:
        rooms = [max(min(room, CONVERTED // len(groups)), FEWEST) for room in rooms]
    wanted = [thinned(group.rows, room) for group, room in zip(groups, rooms, strict=True)]
    progress.start("timing layers", (1 if host.converts else 2) * len(groups))
    if not host.converts:
        rough = _race(groups, wanted, SCREENING, host, progress)
        wanted = [contenders(group.rows, times, MARGIN) for group, times in zip(groups, rough, strict=True)]
    rounds = int(allowance / max(_demand(groups, wanted, 1), 1e-12)) - 1
    fine = _race(groups, wanted, min(max(rounds, MIN_ROUNDS), MAX_ROUNDS), host, progress)
    progress.finish()
    if host.converts:
        number, taken = sum(map(len, wanted)), time.monotonic() - began
        logger.info("%d structures of layers were timed on %s in %.0f s", number, host.name, taken)
    saved = {}
    for group, times in zip(groups, fine, strict=True):
        savings = {(): 0.0, **{operators: (1 - time) * group.share for operators, time in times.items()}}
        saved.update({site.name: savings for site in group.choices})
    return SiteTimes(saved, serving)


def _shares(
    model: nn.Module,
    call: Call,
    modules: Mapping[Hashable, nn.Module],
    calls: Mapping[Hashable, Call],
    host: Host,
) -> tuple[float, list[float]]:
    """Seconds of a forward pass of the model, and the share of each module alone in it."""
    runs = [*host.prepare([model], call), *(host.prepare([modules[key]], calls[key])[0] for key in calls)]
    with torch.inference_mode():
        return relative_times(runs, MIN_ROUNDS)


def _demand(groups: Sequence[_Group], wanted: Sequence[Sequence[Operators]], rounds: int) -> float:
    """Seconds that so many rounds take if every option takes as long as the whole module."""
    runs = (len(options) * (1 + 1 / CHUNK) * group.seconds for group, options in zip(groups, wanted, strict=True))
    return rounds * sum(runs)


def _race(
    groups: Sequence[_Group],
    wanted: Sequence[Sequence[Operators]],
    rounds: int,
    host: Host,
    progress: Progress,
) -> list[dict[Operators, float]]:
    """Time of each option relative to the whole module's: the median over rounds in which both run."""
    found = []
    for group, options in zip(groups, wanted, strict=True):
        times: dict[Operators, float] = {}
        for start in range(0, len(options), CHUNK):
            chunk = options[start : start + CHUNK]
            modules = [group.module, *(built(group.module, group.site, operators) for operators in chunk)]
            runs = host.prepare(modules, group.call)
            with torch.inference_mode():
                _, shares = relative_times(runs, rounds)
            times.update(zip(chunk, shares, strict=True))
        found.append(times)
        progress.advance()
    return found
