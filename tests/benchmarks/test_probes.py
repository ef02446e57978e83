"""The benchmark of probes: from images to its table, on classes that nobody can miss."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import probes
import pytest
import timm
import torch
from frontier_records import Key
from PIL import Image

import vitcompact


def _noise(folder: Path, number: int, seed: int) -> Path:
    """Noise around red in one class, around blue in the other."""
    random = np.random.default_rng(seed)
    for name, colour in (("blue", (30, 30, 220)), ("red", (220, 30, 30))):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.clip(random.normal(colour, 10, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_from_images_to_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit3", img_size=64, num_classes=0, depth=3).eval()
    vitcompact.save(model, tmp_path / "model")
    fit, judge = _noise(tmp_path / "fit", 15, 1), _noise(tmp_path / "judge", 6, 2)
    words = ["probes.py", str(tmp_path / "model"), "--calibration", str(fit), "--fit", str(fit), "--judge", str(judge)]
    results = str(tmp_path / "found.jsonl")
    words += ["--results", results, "--num-images", "8", "--methods", "merge", "--targets", "0.85"]
    monkeypatch.setattr(sys, "argv", words)
    assert probes.main() == 0
    assert "knn 1.0000, linear 1.0000" in capsys.readouterr().out
    assert probes.main() == 0
    assert capsys.readouterr().out == ""  # nothing is computed again
    monkeypatch.setattr(sys, "argv", ["probes.py", "--report", "--results", results])
    assert probes.main() == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| original, seed 0", "| merge, seed 0"]
    assert rows[0].count("100.00 %") == rows[1].count("100.00 %") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "--calibration", "a", "--fit", "a", "--judge", "a", "--results", "x.jsonl.gz"], "not compressed"),
        (["model", "--calibration", "a", "--fit", "a", "--judge", "a", "--results", "x", "y"], "one file"),
        (["--report", "--results", "nowhere.jsonl"], "no such file: nowhere.jsonl"),
        (["model", "--results", "x.jsonl"], "are needed"),
    ],
)
def test_wrong_words_are_one_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["probes.py", *words])
    with pytest.raises(SystemExit):
        probes.main()
    assert message in capsys.readouterr().err


def test_differences_are_paired() -> None:
    def entry(macs: float, hits: list[int]) -> dict[str, object]:
        return {"macs_ratio": macs, "scores": {"knn": hits, "linear": hits}}

    entries = {
        Key("model", "original", 1.0, "raw", 0): entry(1.0, [1] * 60 + [0] * 40),
        Key("model", "merge", 0.8, "raw", 0): entry(0.8, [1] * 50 + [0] * 50),
        Key("other", "merge", 0.8, "raw", 0): entry(0.7, [1] * 50 + [0] * 50),
    }
    before, after, alone = probes.table(entries).splitlines()[2:]
    assert before == "| original, seed 0 | 1.000 | 60.00 % |  | 60.00 % |  |"
    change = (
        "50.00 % | -10.00, -15.89 to -3.72"  # ten lost, none gained: (0.5 - 10.5 +- 1.96 sqrt(11 - 100 / 102)) / 102
    )
    assert after == f"| merge, seed 0 | 0.800 | {change} | {change} |"
    assert alone.count("|  |") == 2  # its original is not there
