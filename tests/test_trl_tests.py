"""The script that runs TRL's own tests with the class swapped: it swaps, counts, and says what ends otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import trl_tests

TESTS = """
import pytest
from trl import GRPOTrainer


class TestTrainer:
    def test_name(self):
        assert GRPOTrainer.__name__ == "GRPOTrainer"

    @pytest.mark.parametrize("number", [1, 2])
    def test_tags(self, number):
        assert "trl" in object.__new__(GRPOTrainer)._tag_names

    @pytest.mark.skip(reason="needs a GPU")
    def test_gpu(self):
        raise AssertionError
"""
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_grpo_trainer.TestA" name="one"/>
<testcase classname="tests.test_grpo_trainer.TestA" name="two"><failure message="assert 1 == 2&#10;more"/></testcase>
<testcase classname="tests.test_grpo_trainer.TestA" name="three"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_a_report_is_read(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    found = trl_tests.read(tmp_path / "report.xml")
    assert {name: row["outcome"] for name, row in found.items()} == {
        "TestA::one": "passed",
        "TestA::two": "failed",
        "TestA::three": "skipped",
    }
    assert found["TestA::two"]["message"] == "assert 1 == 2"
    page = trl_tests.page({"tests": "t.py", "versions": "trl 1", "GRPOTrainer": found, "PFPOTrainer": found})
    assert "| PFPOTrainer | 1 | 1 | 1 |" in page
    assert "Every test ends alike." in page


@pytest.mark.slow
def test_the_class_is_swapped(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    tests = tmp_path / "tests" / "test_grpo_trainer.py"
    tests.write_text(TESTS)
    found = {"tests": tests.name, "versions": ""}
    for name in ("GRPOTrainer", "PFPOTrainer"):
        (tmp_path / name).mkdir()
        found[name] = trl_tests.outcomes(tests, name == "PFPOTrainer", "", tmp_path / name)
    page = trl_tests.page(found)
    assert "| GRPOTrainer | 3 | 0 | 1 |" in page
    assert "| PFPOTrainer | 2 | 1 | 1 |" in page
    assert "`TestTrainer::test_name`: AssertionError" in page
