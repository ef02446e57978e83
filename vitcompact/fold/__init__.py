"""Folding a model in training form into plain layers, proven."""

from vitcompact.fold.fold import fold
from vitcompact.fold.verify import FoldParity, MergingEffect

__all__ = ["FoldParity", "MergingEffect", "fold"]
