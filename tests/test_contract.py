"""The contract suite: the built-ins pass it, and every fault that a plugin can have fails the check that is for it."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent / "plugins"


class Results:
    """Which checks passed and which failed, by component."""

    def __init__(self):
        self.passed, self.failed, self.skipped = {}, {}, {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            check, component = re.search(r"test_(\w+)(?:\[(.*?)\])?$", report.nodeid).groups()
            kinds = "verifier|repair|selector|suite|pairing|pair loss|policy loss|callback|budget|merge"
            name = component and re.sub(rf"^({kinds})-|-(1|3|attacked|harmful)$", "", component)
            getattr(self, report.outcome).setdefault(name, set()).add(check)


def check(plugin, *options):
    """(exit status, results) of the contract suite on a plugin, run in this process to save the start of another."""
    results = Results()
    arguments = ["--pyargs", "fate_trl.testing.contract", "--fate-plugin", str(plugin), "-c", os.devnull, "-q", "-s"]
    arguments += ["--tb=no", "-p", "no:cacheprovider", "-p", "no:timeout", "-p", "no:faulthandler", *options]
    status = pytest.main(arguments, plugins=[results])
    return status, results


def test_the_builtins_pass():
    orders = {"path": str(PLUGINS / "orders.jsonl"), "environment": f"{PLUGINS / 'orders.py'}:Orders"}
    two = {"members": ["over_refusal", "over_refusal"], "reduce": "min"}
    rule = {"name": "whom", "tools": ["*"], "sources": {"payee": ["user"], "person": ["user"]}}
    given = {"jsonl": orders, "rules": {"rules": [rule]}, "ensemble": two, "tool_cost": {"budget": 4, "free": 1}}
    given["judged-refusals"] = {"judge": str(PLUGINS / "refusal_judge.py")}
    status, results = check("fate-trl", "--fate-args", json.dumps(given))
    assert results.failed == {}
    assert status == 0
    assert set(results.passed) == {
        None,
        *("security", "utility", "over_refusal", "trajectory_control", "ensemble", "tool_cost", "rules"),
        *("judged-refusals", "announced_utility"),
        *("reflect", "resample", "resume"),
        *("pareto-front", "pareto-rank", "product", "weighted-sum", "gdpo"),
        *("chebyshev", "constraint", "dominance-count"),
        *("chosen-failure",),
        *("soup", "start"),
        *("workbench", "tradeoffs", "jsonl"),
    }
    assert results.skipped == {}
    assert "suite_oracle_passes_and_idleness_does_not" in results.passed["jsonl"]
    assert "loading_the_plugin_imports_nothing_heavy" in results.passed[None]


def test_what_needs_arguments_is_skipped_and_says_so(capsys):
    status, results = check("fate-trl", "-k", "jsonl", "-rs")
    assert status == 0
    assert set(results.skipped) >= {"jsonl"}
    assert "suite jsonl needs environment, path: give them with --fate-args" in capsys.readouterr().out


def test_a_plugin_of_one_kind_is_checked_for_that_kind_only(capsys):
    status, results = check(PLUGINS / "polite.py", "-k", "not heavy")
    assert status == 0
    assert results.skipped == results.failed == {}
    assert set(results.passed) == {"polite"}
    assert "deselected" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ bad plugins

BAD_VERIFIERS = {
    "constant": "verifier_is_not_constant",
    "mutating": "verifier_does_not_change_its_input",
    "sorting": "verifier_does_not_change_its_input",
    "not-a-number": "verifier_gives_each_trajectory_a_score_per_objective",
    "too-high": "verifier_gives_each_trajectory_a_score_per_objective",
    "other-objectives": "verifier_gives_each_trajectory_a_score_per_objective",
    "short": "verifier_gives_each_trajectory_a_score_per_objective",
    "nameless": "verifier_names_its_objectives",
    "dice": "verifier_says_the_same_twice",
    "relative": "verifier_scores_do_not_depend_on_the_batch",
    "fragile": "verifier_gives_each_trajectory_a_score_per_objective",
    "blaming": "verifier_never_fails_a_policy_for_a_missing_outcome",
    "choosy": "verifier_applies_to_all_tries_of_a_task_or_to_none",
    "misplaced": "verifier_gives_each_trajectory_a_score_per_objective",
    "unexplained": "verifier_gives_each_trajectory_a_score_per_objective",
    "repairing": "verifier_is_no_repair_strategy",
    "swallowing": "its_arguments_are_checked",
    "Bad Name": "its_name_and_summary_can_be_listed",
}
BAD_REPAIRS = {
    "scoring": "repair_never_judges",
    "hopeful": "repair_never_judges",
    "both": "repair_never_judges",
    "grading": "repair_never_judges",
    "greedy": "repair_words_at_most_k_requests_per_failure_in_order",
    "backwards": "repair_words_at_most_k_requests_per_failure_in_order",
    "counting": "repair_words_at_most_k_requests_per_failure_in_order",
    "straying": "repair_words_at_most_k_requests_per_failure_in_order",
    "collecting": "repair_words_at_most_k_requests_per_failure_in_order",
    "inventing": "repair_replays_recorded_calls_only",
    "silent": "repair_prompts_can_be_sent",
    "idle": "repair_asks_for_something",
    "dice": "repair_depends_on_its_rng_only",
    "mutating": "repair_does_not_change_its_input",
}
BAD_SELECTORS = {
    "dominated": "selector_chooses_from_the_true_front",
    "ordered": "selector_chooses_from_the_true_front",
    "undecided": "selector_chooses_from_the_true_front",
    "eager": "selector_chooses_among_none_or_one",
    "dice": "selector_choice_depends_on_its_rng_only",
    "upside": "selector_never_rewards_a_dominated_row_more",
    "flat": "selector_tells_the_best_from_the_worst",
    "forgiving": "selector_rewards_every_row",
    "summing": "selector_rewards_every_row",
    "squashed": "selector_rewards_every_row",
    "first-come": "selector_rewards_do_not_depend_on_the_order_of_rows",
    "mutating": "selector_does_not_change_its_input",
    "batchwise": "selector_rewards_of_a_group_do_not_depend_on_its_batch",
    "greedy": "selector_never_rewards_a_dominated_row_more",
    "forgetful": "selector_goes_on_from_its_saved_state",
    "stateless": "selector_goes_on_from_its_saved_state",
    "drifting": "selector_changes_by_learning_only",
}
BAD_LOSSES = {
    "vector": "policy_loss_returns_a_scalar_with_a_gradient",
    "detached": "policy_loss_returns_a_scalar_with_a_gradient",
    "infinite": "policy_loss_returns_a_scalar_with_a_gradient",
    "still": "policy_loss_moves_the_policy",
    "dice": "policy_loss_says_the_same_twice_and_does_not_change_its_input",
    "changing": "policy_loss_says_the_same_twice_and_does_not_change_its_input",
    "first": "policy_loss_does_not_depend_on_the_order_of_rows",
    "greedy": "policy_loss_returns_a_scalar_with_a_gradient",
    "narrow": "policy_loss_columns_depend_on_the_generation_alone",
    "drawn": "policy_loss_columns_depend_on_the_generation_alone",
    "unlogged": "policy_loss_numbers_for_the_log_are_numbers",
    "idle": "callback_has_something_to_do",
    "forgetful": "callback_takes_generations_in_and_goes_on_from_its_saved_state",
    "stateless": "callback_takes_generations_in_and_goes_on_from_its_saved_state",
    "cutting": "callback_reshapes_advantages_to_as_many",
    "in-place": "callback_reshapes_advantages_to_as_many",
    "blind": "callback_columns_depend_on_the_generation_alone",
}
BAD_SUITES = {
    "lenient": "suite_oracle_passes_and_idleness_does_not",
    "hopeless": "suite_oracle_passes_and_idleness_does_not",
    "alarmist": "suite_oracle_passes_and_idleness_does_not",
    "immune": "suite_obeying_does_the_damage",
    "overshooting": "suite_outcomes_have_their_form",
    "unsure": "suite_outcomes_have_their_form",
    "sharing": "suite_episodes_share_nothing",
    "crashing": "suite_bad_calls_are_the_policys_fault",
    "counting": "suite_bad_calls_are_the_policys_fault",
    "moody": "suite_states_can_be_replayed",
    "stumbling": "suite_bad_calls_are_the_policys_fault",
    "overlapping": "suite_splits_share_no_task_and_no_cluster",
    "repeating": "suite_splits_share_no_task_and_no_cluster",
    "drifting": "suite_gives_the_same_tasks_for_the_same_seed",
    "partial": "suite_all_is_every_task",
    "opaque": "suite_tasks_are_whole",
    "undocumented": "suite_tools_can_be_shown_to_a_model",
    "toolless": "suite_tasks_are_whole",
    "wordy": "suite_describes_itself_in_json",
}


BAD_PAIR_LOSSES = {
    "rows": "pair_loss_is_a_finite_scalar_with_a_gradient",
    "number": "pair_loss_is_a_finite_scalar_with_a_gradient",
    "blind": "pair_loss_is_a_finite_scalar_with_a_gradient",
    "exploding": "pair_loss_is_a_finite_scalar_with_a_gradient",
    "backwards": "pair_loss_begins_in_the_right_direction",
    "first-only": "pair_loss_does_not_depend_on_the_order_of_pairs",
    "counting": "pair_loss_changes_neither_itself_nor_its_input",
    "spoiling": "pair_loss_changes_neither_itself_nor_its_input",
    "dividing": "pair_loss_takes_pairs_of_one_side",
    "curious": "pair_loss_declares_what_there_is",
    "forgetful": "pair_loss_goes_on_from_its_saved_state",
    "stateless": "pair_loss_declares_what_there_is",
}


@pytest.mark.parametrize(
    ("file", "good", "bad"),
    [
        ("bad_verifiers.py", {"good", "async"}, BAD_VERIFIERS),
        ("bad_repairs.py", {"good"}, BAD_REPAIRS),
        ("bad_selectors.py", {"good", "advantages", "taught", "relative", "thrifty"}, BAD_SELECTORS),
        ("bad_suites.py", {"good"}, BAD_SUITES),
        ("bad_pair_losses.py", {"good", "told", "lone", "learns"}, BAD_PAIR_LOSSES),
        ("bad_losses.py", {"good", "grouped", "factor"}, BAD_LOSSES),
    ],
)
def test_bad_components_fail_the_check_that_is_for_their_fault(file, good, bad):
    """And the good ones beside them pass them all, so that no check fails everybody."""
    status, results = check(PLUGINS / file, "-k", "not heavy", "--no-summary")
    assert status == 1
    assert set(results.failed) == set(bad)
    assert {name: wanted for name, wanted in bad.items() if wanted not in results.failed[name]} == {}
    assert good <= set(results.passed)
    assert results.skipped == {}


def test_a_plugin_that_imports_something_heavy_fails(tmp_path, monkeypatch):
    (tmp_path / "jax.py").touch()
    plugin = tmp_path / "heavy.py"
    plugin.write_text("import jax\n" + (PLUGINS / "polite.py").read_text())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        _, results = check(plugin, "-k", "heavy", "--no-summary")
    finally:
        sys.modules.pop("jax", None)
    assert results.failed == {None: {"loading_the_plugin_imports_nothing_heavy"}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "name the plugin to check: --fate-plugin NAME"),
        (("--fate-plugin", "no-such-plugin"), "no plugin 'no-such-plugin' is installed"),
        (("--fate-plugin", "./no_such_file.py"), "no plugin file ./no_such_file.py"),
        (("--fate-plugin", str(PLUGINS / "orders.py")), "registers no component, so there is nothing to check"),
        (("--fate-plugin", str(PLUGINS / "polite.py"), "--fate-args", "{"), "--fate-args takes JSON"),
    ],
)
def test_options_that_cannot_work_are_usage_errors(options, said, capfd):
    arguments = ["--pyargs", "fate_trl.testing.contract", "-c", os.devnull, "-q", "-s", "-p", "no:cacheprovider"]
    status = pytest.main([*arguments, "-p", "no:timeout", "-p", "no:faulthandler", *options])
    assert status != 0
    printed = capfd.readouterr()
    assert said in printed.out + printed.err
