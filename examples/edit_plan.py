"""A plan edited by hand: what the budget chose is a JSON file, and what you make of it is what `convert` does.

    python examples/edit_plan.py

On the command line: `vitcompact convert MODEL --data-dir IMAGES --target-macs 0.7 --dry-run` writes plan.json,
`vitcompact convert MODEL OUT --data-dir IMAGES --plan plan.json` follows it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import vitcompact
from vitcompact import Plan
from vitcompact.data import CalibrationImages, DataOptions

DEMO = Path(vitcompact.__file__).parent / "demo" / "assets"


def main() -> dict[str, list[str]]:
    """Layers of the plan as it was, and as it was made."""
    model = vitcompact.load_source(str(DEMO / "vit_digits")).model
    images = CalibrationImages(model, DataOptions(data_dir=DEMO / "train.tar", num_samples=128, workers=0))
    plan = vitcompact.plan(model, images=images, target_macs=0.7)
    print(plan)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        plan.save(path)
        document = json.loads(path.read_text())
        # this is what an editor would do: the first block is left alone after all
        document["layers"] = [layer for layer in document["layers"] if not layer["name"].startswith("blocks.0.")]
        path.write_text(json.dumps(document))
        edited = Plan.load(path)  # read strictly: a misspelt field or a wrong type is refused

    small = vitcompact.fold(vitcompact.convert(model, images=images, plan=edited))
    done = vitcompact.results(small).plan
    print(f"{len(plan.layers)} layers in the plan, {len(done.layers)} after the edit")
    return {"before": [layer.name for layer in plan.layers], "after": [layer.name for layer in done.layers]}


if __name__ == "__main__":
    main()
