"""vitcompact: pretrained timm Vision Transformers, smaller and faster without retraining from scratch."""

__version__ = "0.1.0"
