"""Pages of the documentation: all are reachable, links lead somewhere, and the API is complete. CI builds the site."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitcompact import public

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"(?ms)^(`{3,}).*?^\1$", "", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"(?m)^#{1,4} (.+)$", prose(path))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> Iterator[tuple[str, str]]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            yield file, anchor


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in links(page):
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {file}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {file}#{anchor}"


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"(?m)^([a-z-]+)$", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert listed == {page.stem for page in PAGES} - {"index"}


def test_every_function_of_the_library_is_described() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [
        name
        for name in public.__all__
        if inspect.isfunction(getattr(public, name)) and not re.search(rf"\b{name}\b", page)
    ]
    assert missing == []


def test_the_plan_of_the_page_is_one() -> None:
    page = (DOCS / "file-format.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?s)```json\n(.*?)```", page)
    plan = public.Plan.from_json(json.loads(block))
    assert [layer.operators[0].op for layer in plan.layers] == ["thin-qk", "neurons"]


def test_every_example_is_described() -> None:
    page = (DOCS / "examples.md").read_text(encoding="utf-8")
    assert all(f"`examples/{path.name}`" in page for path in (ROOT / "examples").glob("*.py"))
