"""Every snippet of docs/deploy.md runs where its runtime is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vitcompact
from vitcompact.errors import UsageError

pytestmark = pytest.mark.broad

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
FILES = {
    **{"onnxruntime": "model.onnx", "openvino": "model.xml", "executorch": "model.pte"},
    **{"torchao": "vitcompact-out/folded", "transformers": "vitcompact-out/folded", "torch": "model.pt2"},
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
    elif FILES[name] == "vitcompact-out/folded":
        vitcompact.save(folded, FILES[name])
    else:
        vitcompact.export(folded, FILES[name])
    Image.fromarray(np.full((40, 40, 3), 99, dtype=np.uint8)).save("image.png")
    found: dict[str, Any] = {}
    exec(snippet, found)
    assert found["outputs"].shape[1] == 4
    if name == "torchao":
        quantized, images = found["model"], torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        linear = [module for module in quantized.modules() if isinstance(module, nn.Linear)]
        assert all(module.weight.dtype == torch.float32 for module in folded.modules() if isinstance(module, nn.Linear))
        assert linear
        assert all("Int8" in type(module.weight).__name__ for module in linear)
        result = vitcompact.evaluate(quantized, [(images, torch.zeros(8, dtype=torch.long))], reference=folded)
        assert result.cosine is not None
        assert result.cosine > 0.999
        with pytest.raises(UsageError, match="not a plain tensor: save the model before its weights are quantized"):
            vitcompact.save(quantized, "again")
        assert not Path("again").exists()
    if name == "onnxruntime":
        assert capsys.readouterr().out.strip() in ("bee", "cat", "dog", "emu")
