"""The whole job in one call: plan, convert, judge, train where it is needed, fold, time."""

from vitcompact.compaction.compare import Compared, compare
from vitcompact.compaction.job import compact
from vitcompact.compaction.result import CompactResult, Measures, Step
from vitcompact.compaction.within import Tried, Within, convert_within

__all__ = [
    "CompactResult",
    "Compared",
    "Measures",
    "Step",
    "Tried",
    "Within",
    "compact",
    "compare",
    "convert_within",
]
