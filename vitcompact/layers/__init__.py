"""The modules that run in a compacted model. This package knows torch only."""
