"""Pages: every section from real models, nothing loaded, small for a large model, opened in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.analysis import analyze_plan
from vitcompact.analysis.merged import drawn
from vitcompact.analysis.savings import savings
from vitcompact.data import from_tensor, resolve_input
from vitcompact.evaluation import MostChanged
from vitcompact.models.cost import count
from vitcompact.reporting import draw, heat_uri, picture_uri
from vitcompact.reporting.html import table_of
from vitcompact.reporting.svg import scatter

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
LIMIT = 10_000_000
"""Bytes that a page may have."""


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("test_vit", num_classes=3, img_size=64).eval()
    return made


@pytest.fixture(scope="module")
def document(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Everything that a page can have, of the pair with merged tokens."""
    compact = vitcompact.convert(model, images=images, ratio=0.5, rank_ratio=0.5, merge_tokens=2).eval()
    plan = vitcompact.results(compact).plan
    report = analyze_plan(model, from_tensor(images, 8), plan, compacted=compact)
    changed = MostChanged(classifier=True)
    result = vitcompact.evaluate(compact, images, reference=model, observer=changed)
    seen = changed.to_page(resolve_input(model), ["<script>alert(1)</script>", "b&b", "c"])
    assert seen["seen"] == result.num_samples == 24
    assert seen["differ"] == round((1 - (result.agreement or 0)) * 24)
    made = {"command": "vitcompact convert '</pre><script>'", "SHA-256": "ab" * 32}
    budget = {"unit": "macs", "target": 0.8, "left": 0.79, "harm": 1e-3, "layers": [], "interval": None}
    curve = [{"left": 0.9, "harm": 1e-4}, {"left": 0.5, "harm": 1e-2}]
    return {**report.to_page(), "changed": seen, "made": made, "budget": {**budget, "curve": curve}}


class Links(HTMLParser):
    """Tags, and what they point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_everything_is_on_the_page_and_nothing_is_loaded(document: dict[str, Any]) -> None:
    text = draw(document)
    for part in ("Loss against budget", "Who saves what", "Attention heads", "Attention maps on your pictures"):
        assert f"<h2>{part}" in text
    for part in (
        "Merged tokens",
        "FFN outputs",
        "Most changed predictions",
        "How this was made",
        "hallucinated</span>",
    ):
        assert part in text
    found = Links(text)
    assert not found.tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert all(target.startswith("data:") for target in found.targets)
    assert "url(" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_sections_without_data_are_left_out(document: dict[str, Any]) -> None:
    assert "<h2>" not in draw({"title": "x"})
    without = {key: value for key, value in document.items() if key not in ("maps", "merged", "changed", "budget")}
    assert not re.search("Merged tokens|Attention maps|Most changed|Loss against", draw(without))


def test_savings_add_up_and_name_operators(model: nn.Module, document: dict[str, Any]) -> None:
    plan = vitcompact.Plan.from_json(document["plan"])
    found = savings(model, plan)
    names = {name for block in found["blocks"] for name in block["saved"]}
    assert names == {"hallucinate", "factorize", "merge tokens"}
    assert [block["name"] for block in found["blocks"]] == [f"blocks.{i}" for i in range(len(found["blocks"]))]
    assert found["whole"] == count(model, (3, 64, 64)).macs
    saved = sum(sum(block["saved"].values()) for block in found["blocks"])
    assert found["saved"] == document["macs"] - document["predicted"]["macs"]
    assert saved >= found["saved"] > 0.99 * saved  # matching tokens costs a little, in no layer


def test_maps_are_those_of_the_heads_named(model: nn.Module, images: Tensor, document: dict[str, Any]) -> None:
    layer = document["maps"]["layers"][0]
    planned = vitcompact.Plan.from_json(document["plan"]).layer(layer["name"])
    assert planned is not None
    pairs = {child.head: child.parents[0] for child in planned.operators[0].hallucinated}  # type: ignore[attr-defined]
    assert {head["head"] for head in layer["heads"]} == set(pairs)
    for head in layer["heads"]:
        assert [row["label"] for row in head["rows"]] == ["original", f"parent {pairs[head['head']]}", "hallucinated"]
        assert all(len(row["maps"]) == 4 for row in head["rows"])
    attention: Any = model.get_submodule(layer["name"])
    kept: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model(images[:4])
    handle.remove()
    q, k, _ = attention.qkv(kept[0]).reshape(4, kept[0].shape[1], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    maps = ((q * attention.scale) @ k.transpose(-1, -2)).softmax(-1)
    first = int(model.num_prefix_tokens)  # type: ignore[arg-type]
    head = layer["heads"][0]
    side = int((maps.shape[-1] - first) ** 0.5)
    wanted = [heat_uri(row[first:].reshape(side, side).detach().numpy()) for row in maps[:, head["head"], 0]]
    assert sum(a == b for a, b in zip(wanted, head["rows"][0]["maps"], strict=True)) >= 3  # but for rounding


def test_merged_patches_share_their_colour() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, :4], picture[:4, :4] = 100, 200
    out = drawn(picture, np.array([[0, 1], [0, 3]]))
    assert out.shape == (224, 224, 3)
    inside = out[10:100, 10:100], out[130:200, 10:100]
    assert {int(part.mean()) for part in inside} == {150}
    assert int(out[50:100, 130:200].mean()) == 0


def test_the_most_changed_come_first_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    images, before = torch.rand(50, 3, 8, 8, generator=generator), torch.randn(50, 4, generator=generator)
    after = before + torch.randn(50, 4, generator=generator)
    pages = []
    config = resolve_input(timm.create_model("test_vit", num_classes=4))
    for size in (50, 7):
        changed = MostChanged(classifier=True, kept=5)
        for part in torch.arange(50).split(size):
            changed(images[part], after[part], before[part], None)
        pages.append(changed.to_page(config))
    assert pages[0] == pages[1]
    assert pages[0]["differ"] == int((before.argmax(1) != after.argmax(1)).sum())
    assert all(one["before"][0] != one["after"][0] for one in pages[0]["images"])


@pytest.mark.parametrize(
    ("heights", "most", "above"),
    [((99.4, 99.4, 99.4), 100.0, 100.0), ((60.0, 71.5, 99.9), 100.0, 100.0), ((0.99, 0.98, 1.0), 1.0, 1.0)],
)
def test_axes_have_round_numbers_that_can_be(heights: tuple[float, ...], most: float, above: float) -> None:
    points = [(1.0 + 0.05 * i, height, f"m{i}") for i, height in enumerate(heights)]
    drawing = scatter(points, "times as fast", most)
    levels = [float(text) for text in re.findall(r'text-anchor="end">([\d.]+)</text>', drawing)]
    steps = {round(b - a, 9) for a, b in pairwise(levels)}
    assert 2 <= len(levels) <= 7
    assert max(levels) <= above
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"


def test_a_phone_lists_the_cells_of_a_wide_table_by_name() -> None:
    head = ("", "top-1", "ms", "MACs", "parameters", "<file size>")
    text = table_of(head, [("a", "1", "2", "3", "4", "5")], text=1)
    assert '<table class="many">' in text
    assert '<td class="number" data-name="&lt;file size&gt;">5</td>' in text
    assert "data-name" not in table_of(head[:4], [("a", "1", "2", "3")], text=1)


def test_a_page_of_a_vit_large_is_small(document: dict[str, Any]) -> None:
    """24 layers of 16 heads at 518 pixels (37 x 37 patches), half of the heads hallucinated, photographs of noise."""
    noise = np.random.default_rng(0)
    grid = [heat_uri(noise.random((37, 37))) for _ in range(4)]
    photo = [picture_uri(noise.integers(0, 255, (518, 518, 3), dtype=np.uint8)) for _ in range(4)]
    rows = [{"label": label, "maps": grid} for label in ("original", "parent", "hallucinated")]
    heads = [{"head": i, "title": f"head {i} from head {i + 8} (cosine 0.50)", "rows": rows} for i in range(4)]
    names = [f"blocks.{i}.attn" for i in range(24)]
    matrix = noise.random((16, 16)).tolist()
    pairs = [{"head": i, "parents": [i + 8], "similarity": 0.5} for i in range(8)]
    layer = {"num_heads": 16, "similarity": 0.5, "hallucinated": pairs, "matrix": matrix}
    spectrum = [1 - 10 ** (-6 * i / 32) for i in range(1, 33)]
    ffn = {"rank": 512, "energy": 0.99, "embed": 1024, "hidden": 4096, "spectrum": spectrum}
    views = [(uri, "1369 patches") for uri in photo[:3]]
    answer = {"picture": photo[0], "before": ("a", 1), "after": ("b", 1)}
    large = {
        **document,
        "layers": [{"name": name, **layer} for name in names],
        "ffn": [{"name": f"blocks.{i}.mlp", **ffn} for i in range(24)],
        "maps": {
            "query": "",
            "pictures": photo,
            "layers": [{"name": name, "heads": heads, "more": 4} for name in names],
        },
        "merged": [{"views": views}] * 4,
        "changed": {"seen": 9, "differ": 9, "images": [answer] * 12},
    }
    assert len(draw(large).encode()) < LIMIT


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_opens_it_without_a_request_or_an_error(width: int, document: dict[str, Any], tmp_path: Path) -> None:
    page, shot, log = tmp_path / "page.html", tmp_path / "shot.png", tmp_path / "net.json"
    page.write_text(draw(document))
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += ["--disable-background-networking"]
    words += [f"--window-size={width},1200", f"--screenshot={shot}", f"--log-net-log={log}"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [str(CHROMIUM), *words, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not re.search(r"CONSOLE|Refused to|violates", done.stderr)
    assert shot.stat().st_size > 10_000
    urls = set(re.findall(r'"url":"((?:https?|wss?)://[^"]+)', log.read_text(errors="replace")))
    assert not {url for url in urls if not re.match(r"https?://[^/]*(google|gstatic|gvt1)", url)}
