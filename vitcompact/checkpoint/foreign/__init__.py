"""Checkpoints of other libraries: Hugging Face transformers, open_clip and torchvision, as timm models."""

from vitcompact.checkpoint.foreign.build import build
from vitcompact.checkpoint.foreign.directory import ForeignDirectory, foreign_directory
from vitcompact.checkpoint.foreign.torchvision import torchvision_model

__all__ = ["ForeignDirectory", "build", "foreign_directory", "torchvision_model"]
