"""Classes with layouts, biases and poolings of their own: short in the fast tests, whole in the slow ones."""

from __future__ import annotations

import pytest

from tests.conformance.cases import CASES, FFN_CASES, SLOW_CASES, SLOW_FFN_CASES
from tests.conformance.suite import ConformanceSuite, ShortSuite


class TestOtherFamilies(ShortSuite):
    cases = CASES


class TestOtherFfns(ShortSuite):
    cases = FFN_CASES


@pytest.mark.slow
class TestSlowFfns(ShortSuite):
    cases = SLOW_FFN_CASES


@pytest.mark.slow
class TestOtherFamiliesWhole(ConformanceSuite):
    cases = (*CASES, *FFN_CASES, *SLOW_CASES)
