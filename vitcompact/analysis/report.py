"""What `analyze` found, ready for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitcompact.models.cost import Cost
from vitcompact.plans.schema import Plan, Skipped
from vitcompact.reporting import write_page
from vitcompact.reporting.measures import measured_of
from vitcompact.reporting.notebook import fragment
from vitcompact.utils.text import change, columns


@dataclass(frozen=True)
class HeadPair:
    """A head that would be hallucinated, its parent, and the cosine of their maps."""

    head: int
    parents: tuple[int, ...]
    similarity: float


@dataclass(frozen=True)
class LayerReport:
    """One attention layer, as the plan of the budget has it where there is one, else as the pair would.

    Attributes:
        similarity: mean cosine of the hallucinated heads' maps with their parents'; where none is, of each head's map
            with the one most like it; without images, of the heads' bilinear forms `W_q^T W_k`.
        similarity_js: the same by Jensen-Shannon (1 minus the divergence in bits), None without images.
        copy_error: output energy that copying the parents' maps would cost, relative to the layer's own output
            energy; None without images.
        matrix: cosine of every pair of heads.
    """

    name: str
    num_heads: int
    similarity: float
    similarity_js: float | None
    copy_error: float | None
    kept: tuple[int, ...]
    hallucinated: tuple[HeadPair, ...]
    matrix: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class FfnReport:
    """One FFN: `energy` is the share of its output energy in the first `rank` directions.

    In the plan of a budget, `rank` is all of the outputs where the matrix stays whole.

    `spectrum` holds the energy shares at 1, 2, ... 32 parts in 32 of the outputs.
    """

    name: str
    hidden: int
    embed: int
    rank: int
    energy: float
    spectrum: tuple[float, ...]


@dataclass(frozen=True)
class AnalysisReport:
    """The whole analysis.

    `predicted` is the cost of the folded model that `convert` would lead to, `budget` what `budget_json` says. `plan`,
    `savings` by block and operator and `pictures` (attention maps, merged tokens) are there for the page that `save`
    draws; a notebook shows it in short.
    """

    model: str
    cost: Cost
    predicted: Cost
    layers: tuple[LayerReport, ...]
    ffn: tuple[FfnReport, ...]
    skipped: tuple[Skipped, ...]
    num_samples: int
    budget: dict[str, Any] | None = None
    plan: Plan | None = field(default=None, repr=False)
    savings: dict[str, Any] = field(default_factory=dict, repr=False)
    pictures: dict[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        params, macs = (change(getattr(self.cost, n), getattr(self.predicted, n)) for n in ("params", "macs"))
        kinds: list[str] = [layer.kind for layer in self.plan.layers] if self.plan is not None else []
        heads, ffn = (len(seen) or kinds.count(kind) for seen, kind in ((self.layers, "attention"), (self.ffn, "ffn")))
        found = f"{heads} attention layers, {ffn} FFNs, {len(self.skipped)} left unchanged"
        return f"<AnalysisReport of {self.model}: {found}; parameters {params}, MACs {macs} when folded>"

    def __str__(self) -> str:
        """The same line, then one line for each layer (none of a model without weights)."""
        heads = [(r.name, f"{r.num_heads} heads", f"similarity {r.similarity:.3f}") for r in self.layers]
        ffn = [(r.name, f"{r.hidden} to {r.embed}", f"rank {r.rank} holds {r.energy:.1%}") for r in self.ffn]
        if not heads and not ffn:
            return repr(self)[1:-1]
        return "\n".join([repr(self)[1:-1], "", columns([("layer", "size", "found"), *heads, *ffn])])

    def to_json(self) -> dict[str, Any]:
        """Keys: model, params, macs, layers, ffn, skipped, predicted, num_samples, and budget where one was given."""
        document = {
            "model": self.model,
            "params": self.cost.params,
            "macs": self.cost.macs,
            "layers": [asdict(layer) for layer in self.layers],
            "ffn": [asdict(ffn) for ffn in self.ffn],
            "skipped": [asdict(item) for item in self.skipped],
            "predicted": asdict(self.predicted),
            "num_samples": self.num_samples,
        }
        return document if self.budget is None else {**document, "budget": self.budget}

    def to_page(self) -> dict[str, Any]:
        """What `reporting.draw` makes a page of: the above, the plan, savings and pictures."""
        cost = measured_of((asdict(self.cost), asdict(self.predicted)), predicted=True)
        plan = None if self.plan is None else self.plan.to_json()
        return {**self.to_json(), "measured": cost, "plan": plan, "savings": self.savings, **self.pictures}

    def save(self, path: str | Path) -> Path:
        """Draw the analysis into a .html file that loads nothing; a page of ours that is there is replaced.

        Raises:
            UsageError: no .html file, or one that cannot be written.
        """
        return write_page(self.to_page(), path)

    def _repr_html_(self) -> str:
        return fragment(repr(self)[1:-1], self.to_page())
