"""Files for other runtimes: written, proven against PyTorch, and read back."""

from vitcompact.exporting.export import check_exportable, export
from vitcompact.exporting.hosted import RUNTIMES, check_runtime, hosted, runtime_of
from vitcompact.exporting.registry import FORMATS, format_of
from vitcompact.exporting.result import ExportResult
from vitcompact.exporting.runtime import ExportedModel, is_exported, open_exported
from vitcompact.exporting.timed import host_of

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "ExportResult",
    "ExportedModel",
    "check_exportable",
    "check_runtime",
    "export",
    "format_of",
    "host_of",
    "hosted",
    "is_exported",
    "open_exported",
    "runtime_of",
]
