"""The code that `mutants.py` makes faults in, by group, and the tests that have to notice."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "folding": ("folding/*.py", "layers/factor.py", "layers/branches.py"),
    "operators": ("operators/*.py",),
    "planning": ("planning/*.py",),
    "writing": (
        *("checkpoint/write.py", "checkpoint/disk.py", "checkpoint/rebuilt.py", "checkpoint/record.py"),
        *("utils/files.py", "utils/locks.py", "utils/postponed.py", "utils/scratch.py"),
    ),
    "resume": (
        *("training/state.py", "training/keep.py", "training/loop.py", "training/schedule.py", "training/stream.py"),
        *("training/finetune.py", "training/interrupt.py", "training/aside.py", "training/course.py"),
        *("training/teacher_cache.py", "training/mixing.py"),
    ),
}
"""Files of the package by group."""
TESTS: dict[str, tuple[str, ...]] = {
    "folding/fold": ("folding", "library/test_boundary.py"),
    "folding/": ("folding",),
    "layers/": ("layers/test_factor.py", "folding"),
    "operators/filter_fit": ("operators/test_filter_fit.py", "surgery/test_value_filter.py"),
    "operators/hallucinate": ("operators/test_pairing.py", "operators/test_filter_fit.py", "surgery/test_convert.py"),
    "operators/pair": ("operators/test_pairing.py", "operators/test_fits.py"),
    "operators/merg": ("operators/test_merging.py",),
    "operators/neurons": ("operators/test_neurons.py",),
    "operators/share_qk": ("operators/test_share_qk.py",),
    "operators/refit": ("operators/test_filter_fit.py", "surgery/test_value_filter.py"),
    "operators/outputs": ("surgery/test_convert.py",),
    "operators/base": ("operators/test_registry.py", "operators/test_extending.py", "planning/test_curves.py"),
    "operators/": (
        *(
            "operators/test_fits.py",
            "operators/test_thin.py",
            "operators/test_registry.py",
            "operators/test_neurons.py",
        ),
        *("operators/test_share_qk.py", "operators/test_oracles.py", "surgery/test_convert.py"),
    ),
    "planning/knapsack": ("planning/test_knapsack.py", "planning/test_budget.py"),
    "planning/latency_target": ("planning/test_latency_target.py",),
    "planning/site_time": ("planning/test_site_time.py", "planning/test_latency_target.py"),
    "planning/site_structure": ("planning/test_site_time.py",),
    "planning/combinations": (
        "planning/test_site_time.py",
        "planning/test_latency_target.py",
        "planning/test_budget.py",
    ),
    "planning/merging": ("planning/test_merging_budget.py",),
    "planning/kept_losses": ("planning/test_curves.py",),
    "planning/predicted": ("planning/test_predicted.py", "planning/test_budget.py"),
    "planning/request": ("planning/test_allocation.py", "planning/test_budget.py", "library/test_plan_checks.py"),
    "planning/selection": ("planning/test_allocation.py", "planning/test_budget.py", "library/test_plan_checks.py"),
    "planning/scope": ("library/test_plan.py", "surgery/test_convert.py"),
    "planning/planner": ("planning/test_budget.py", "planning/test_merging_budget.py", "analysis/test_analyze.py"),
    "planning/": (
        "planning/test_allocation.py",
        "planning/test_budget.py",
        "planning/test_knapsack.py",
        "planning/test_merging_budget.py",
    ),
    "checkpoint/record": ("checkpoint/test_write.py", "library/test_results.py", "cli/test_hostile_files.py"),
    "checkpoint/": ("checkpoint/test_write.py", "checkpoint/test_rebuilt.py", "checkpoint/test_unfinished.py"),
    "utils/files": ("utils/test_files.py", "checkpoint/test_write.py"),
    "utils/locks": ("utils/test_files.py", "utils/test_scratch.py", "checkpoint/test_unfinished.py"),
    "utils/": ("utils/test_files.py", "utils/test_scratch.py", "utils/test_postponed.py"),
    "training/schedule": ("training/test_schedule.py", "training/test_resume.py"),
    "training/finetune": (
        "training/test_finetune.py",
        "training/test_resume.py",
        "training/test_options.py",
        "training/test_rate.py",
    ),
    "training/course": ("training/test_course.py",),
    "training/teacher": ("training/test_recipes.py",),
    "training/mixing": ("training/test_recipes.py",),
    "training/state": ("training/test_resume.py", "training/test_hostile_state.py"),
    "training/": ("training/test_resume.py", "training/test_schedule.py", "training/test_finetune.py"),
}
"""By the beginning of a file's name, the first that fits: the tests that have to notice."""


def tests_of(file: str) -> tuple[str, ...]:
    """The tests of a file of the package."""
    name = file.removeprefix("vitcompact/")
    return next(tests for start, tests in TESTS.items() if name.startswith(start))
