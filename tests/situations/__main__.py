"""`python -m tests.situations [WORDS, MORE WORDS]`: a table of verdicts. Exit code 1 where one fails or is rough."""

from __future__ import annotations

import sys
from collections import Counter

from .verdicts import judged

if __name__ == "__main__":
    counts: Counter[str] = Counter()
    for found in judged(" ".join(sys.argv[1:])):
        counts[found.verdict] += 1
        reason = f"\n        {found.reason}" if found.reason else ""
        sys.stdout.write(f"{found.verdict:7} {found.situation.kind}  {found.situation.title}{reason}\n")
        sys.stdout.flush()
    sys.stdout.write(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) + "\n")
    sys.exit(bool(counts["FAIL"] or counts["rough"]))
