"""Files for other runtimes: written, proven against PyTorch, and read back."""

from vitcompact.exporting.export import check_exportable, export
from vitcompact.exporting.registry import FORMATS, format_of
from vitcompact.exporting.result import ExportResult
from vitcompact.exporting.runtime import ExportedModel, is_exported, open_exported

__all__ = [
    "FORMATS",
    "ExportResult",
    "ExportedModel",
    "check_exportable",
    "export",
    "format_of",
    "is_exported",
    "open_exported",
]
