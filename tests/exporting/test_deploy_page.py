"""Every snippet of docs/deploy.md runs where its runtime is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import vitcompact

pytestmark = pytest.mark.broad

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
FILES = {
    **{"onnxruntime": "model.onnx", "openvino": "model.xml", "executorch": "model.pte", "torch": "model.pt2"},
    "transformers": "vitcompact-out/folded",
}


def runtime(snippet: str) -> str:
    return next((name for name in FILES if re.search(rf"^(import|from) {name}\b", snippet, re.MULTILINE)), "none")


def test_the_page_has_a_snippet_for_each() -> None:
    assert sorted(map(runtime, SNIPPETS)) == sorted(FILES)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=map(runtime, SNIPPETS))
def test_snippet(
    snippet: str,
    folded: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = runtime(snippet)
    pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    made = {"onnxruntime": "onnx_file", "torch": "pt2_file"}.get(name)
    if made:
        Path(FILES[name]).symlink_to(request.getfixturevalue(made))
    elif name == "transformers":
        vitcompact.save(folded, FILES[name])
    else:
        vitcompact.export(folded, FILES[name])
    Image.fromarray(np.full((40, 40, 3), 99, dtype=np.uint8)).save("image.png")
    found: dict[str, Any] = {}
    exec(snippet, found)
    assert found["outputs"].shape[1] == 4
    if name == "onnxruntime":
        assert capsys.readouterr().out.strip() in ("bee", "cat", "dog", "emu")
