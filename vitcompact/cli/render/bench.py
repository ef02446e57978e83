"""The tables of `bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vitcompact.cli.render.common import UNKNOWN, table, titled


def bench_tables(document: Mapping[str, Any]) -> list[RenderableType]:
    """Baseline and model for each batch size, the speed-up, and what the MACs alone would suggest."""
    size = " x ".join(map(str, document["input_size"][1:]))
    found = table(
        *("batch", "", "ms p50", "ms p95", "images/s", "peak memory"),
        right=("batch", "ms p50", "ms p95", "images/s", "peak memory"),
    )
    for row in document["batches"]:
        _add(found, str(row["batch_size"]), "baseline", row["baseline"])
        _add(found, "", "compact", row)
    columns = ("batch", "times as fast", "95 % interval")
    speed = table(*columns, right=columns)
    for row in document["batches"]:
        low, high = row["speedup_interval"]
        speed.add_row(str(row["batch_size"]), f"{row['speedup']:.3f}", f"{low:.3f} to {high:.3f}")
    ratio = document.get("macs_ratio")
    lines = [f"compact ran on {document['backend']}"]
    if document["baseline"].get("backend"):
        lines.append(f"baseline ran on {document['baseline']['backend']}")
    if ratio:
        lines.insert(
            0, f"MACs: {ratio:.3f} of the baseline's, which by themselves would make it {1 / ratio:.3f} times as fast"
        )
    layers = [titled("Layers one by one", _layers(document["layers"]))] if document.get("layers") else []
    title = f"{document['model']} against its baseline, {size} px, timed alternately"
    return [titled(title, found), titled("Speed-up", speed), *layers, Text("\n".join(lines))]


def _layers(rows: Sequence[Mapping[str, Any]]) -> Table:
    numbers = ("baseline ms", "ms", "times as fast", "by its MACs")
    found = table("layer", *numbers, "", right=numbers, fold=("layer",))
    for row in rows:
        figures = (f"{row[key]:.3f}" for key in ("baseline_ms", "ms", "speedup"))
        implied = f"{1 / row['macs_ratio']:.3f}" if row["macs_ratio"] else UNKNOWN
        found.add_row(Text(row["name"]), *figures, implied, "slower" if row["slower"] else "")
    return found


def _add(found: Table, batch: str, name: str, side: Mapping[str, Any]) -> None:
    memory = side.get("peak_memory_bytes")
    found.add_row(
        batch,
        name,
        f"{side['latency_ms']['p50']:.2f}",
        f"{side['latency_ms']['p95']:.2f}",
        f"{side['samples_per_sec']:.1f}",
        UNKNOWN if memory is None else f"{memory / 2**20:.0f} MiB",
    )
