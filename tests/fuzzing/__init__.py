"""A structure-aware fuzzer of every file that vitcompact reads.

`python -m tests.fuzzing` runs 10,000 files and more; `--only READER --seed N` runs one of them again.
"""
