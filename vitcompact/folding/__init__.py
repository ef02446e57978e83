"""Folding a model in training form into plain layers, proven."""

from vitcompact.folding.fold import fold
from vitcompact.folding.verify import FoldParity, MergingEffect

__all__ = ["FoldParity", "MergingEffect", "fold"]
