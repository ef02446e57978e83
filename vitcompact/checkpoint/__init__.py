"""Reads any SOURCE into a timm model and writes models as directories that timm loads."""

from vitcompact.checkpoint.directory import load
from vitcompact.checkpoint.disk import check_out
from vitcompact.checkpoint.hub_push import Pushed, push
from vitcompact.checkpoint.provenance import Provenance
from vitcompact.checkpoint.record import Record, read_record
from vitcompact.checkpoint.source import LoadedModel, load_source
from vitcompact.checkpoint.write import save
from vitcompact.options.source import SourceOptions

__all__ = [
    "LoadedModel",
    "Provenance",
    "Pushed",
    "Record",
    "SourceOptions",
    "check_out",
    "load",
    "load_source",
    "push",
    "read_record",
    "save",
]
