"""Attention classes with layouts, biases and poolings of their own: short in the fast tests, whole in the slow ones."""

from __future__ import annotations

import pytest

from tests.conformance.cases import CASES, SLOW_CASES
from tests.conformance.suite import ConformanceSuite, ShortSuite


class TestOtherFamilies(ShortSuite):
    cases = CASES


@pytest.mark.slow
class TestOtherFamiliesWhole(ConformanceSuite):
    cases = (*CASES, *SLOW_CASES)
