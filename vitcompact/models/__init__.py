"""Adapters: what timm's models are made of. Surgery, operators, fold and cost know none of their classes."""

from vitcompact.models.base import Anatomy, AttentionFamily, AttentionSite, FfnSite, Site
from vitcompact.models.registry import FAMILIES, family_named, family_of, inspect

__all__ = [
    "FAMILIES",
    "Anatomy",
    "AttentionFamily",
    "AttentionSite",
    "FfnSite",
    "Site",
    "family_named",
    "family_of",
    "inspect",
]
