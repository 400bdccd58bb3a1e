"""Marks a test as the test of a case from the field: what was put in, what became of it before, what becomes of it now.

`python -m benchmarks.cases` runs the marked tests and writes docs/results/cases.md from those that pass.
"""

import pytest


def case(section: str, given: str, before: str, now: str) -> pytest.MarkDecorator:
    """The mark of one case; also for one set of parameters, as `pytest.param(…, marks=case(…))`.

    Args:
        section: What is tried, in a word or two and the same for its siblings: "served models".
        given: The input in a line.
        before: What became of it before it was mended.
        now: What becomes of it now, as the test asserts it.
    """
    return pytest.mark.case(section=section, given=given, before=before, now=now)
