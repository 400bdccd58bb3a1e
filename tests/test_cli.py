"""The command line: lists, checks and copies, what a machine may read of them, and errors without tracebacks."""

import io
import json
import re
import sys

import pytest
from case import case
from rich.console import Console

from fate_trl import cli, plugins
from fate_trl.cli import lists, suites
from fate_trl.cli.console import visible
from fate_trl.cli.run import explained, finished, fresh
from fate_trl.cli.tables import metrics_table
from fate_trl.errors import LedgerError, PluginError, RecipeError, SuiteError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.messages import counted
from fate_trl.recipe.loading import load_recipe, make_recipe, shipped

HOSTILE = "evil\x1b[2J\x07\u202e\ud800 [red]name[/red]"
VISIBLE = "evil\\x1b[2J\\x07\\x202e\\xd800 [red]name[/red]"


@pytest.fixture
def fate(monkeypatch, capsys):
    """Runs a command as the entry point does; returns (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fate-trl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return end.value.code or 0, said.out, said.err

    return run


SMALL = ("--set", "train=6", "--set", "validation=3", "--set", "test=6")

CODE = '''
class Desk:
    def reset(self, **kwargs):
        self.done = False

    def work(self) -> str:
        """Work."""
        self.done = True
        return "done"

    def rest(self) -> str:
        """Rest."""
        raise ValueError("it is no holiday")
'''


@pytest.fixture
def desk(tmp_path):
    """Arguments of `suites check` for a jsonl suite with these rows."""
    (tmp_path / "desk.py").write_text(CODE)

    def arguments(*rows):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        named = {"path": tmp_path / "rows.jsonl", "environment": f"{tmp_path}/desk.py:Desk"}
        return ["suites", "check", "jsonl", *(word for k, v in named.items() for word in ("--set", f"{k}={v}"))]

    return arguments


ORACLE = {"calls": [{"name": "work"}], "answer": "Done."}
GOOD = {"id": "good", "prompt": "Work.", "expect": {"state": {"done": True}}, "oracle": ORACLE}


# ------------------------------------------------------------------------------------------------ lists


def test_plugins_are_listed(fate):
    status, out, _ = fate("plugins", "--json")
    assert status == 0
    rows = json.loads(out)
    builtin = {(row["type"], row["name"]) for row in rows if row["plugin"] == plugins.BUILTINS}
    assert {
        ("verifier", "security"),
        ("verifier", "trajectory_control"),
        ("repair", "resume"),
        ("selector", "pareto-front"),
        ("selector", "gdpo"),
        ("suite", "workbench"),
        ("suite", "jsonl"),
    } <= builtin
    assert all(row["summary"] for row in rows)
    status, out, _ = fate("plugins")
    assert status == 0
    assert "security" in out


def test_suites_are_listed(fate):
    rows = json.loads(fate("suites", "--json")[1])
    assert {"workbench", "jsonl"} <= {row["name"] for row in rows}
    assert {row["type"] for row in rows} <= {"suite", "not imported", "blocked"}
    status, out, _ = fate("suites")
    assert status == 0
    assert out.startswith("workbench ")


def test_a_plugin_without_suites_is_not_among_the_suites(fate, monkeypatch):
    """What the source says is enough: nothing is imported for it."""
    listed = {row["plugin"] for row in json.loads(fate("plugins", "--json")[1])}
    shown = {row["plugin"] for row in json.loads(fate("suites", "--json")[1])}
    assert {"agentdojo", "guard", "judge"} <= listed
    assert "agentdojo" in shown
    assert not {"guard", "judge"} & shown
    assert not plugins.without_suites("nobody-knows-it"), "what cannot be read stays on the list"


def test_recipes_are_listed_with_their_purpose(fate):
    status, out, _ = fate("recipes", "--json")
    assert status == 0
    rows = {row["name"]: row["purpose"] for row in json.loads(out)}
    assert set(rows) == set(shipped())
    assert rows["quickstart"].startswith("The whole loop")
    assert "quickstart" in fate("recipes")[1]


def test_names_from_outside_do_not_steer_the_terminal(fate, monkeypatch):
    rows = [{"plugin": HOSTILE, "type": "not imported", "name": HOSTILE, "summary": HOSTILE}]
    monkeypatch.setattr(plugins, "describe", lambda: rows)
    for command in ("plugins", "suites"):
        wide = Console(file=io.StringIO(), width=300, highlight=False)
        monkeypatch.setattr(lists, "out", wide)
        monkeypatch.setattr(suites, "out", wide)
        assert fate(command)[0] == 0
        text = wide.file.getvalue()
        assert VISIBLE in text, "markup is shown, not obeyed"
        assert all(c.isprintable() or c == "\n" for c in text)
        said = fate(command, "--json")[1]
        assert said.isascii()
        assert json.loads(said)[0]["name"] == HOSTILE


def test_control_characters_are_spelled_out():
    assert visible("a\tb\x00\x9b\u2066c\nd é 漢 \U0001f600") == "a\\x09b\\x00\\x9b\\x2066c\nd é 漢 \U0001f600"


# ------------------------------------------------------------------------------------------------ suites check


def test_the_workbench_has_no_defects(fate):
    status, out, _ = fate("suites", "check", "workbench", "--json", *SMALL)
    assert status == 0
    found = json.loads(out)
    assert found["suite"] == "workbench"
    assert found["tasks"] == {"benign": 5, "attacked": 5, "harmful": 5}
    assert found["defects"] == found["errors"] == found["no_attack_script"] == []
    assert found["roles"]["oracle"]["attacked"]["utility_passes"] == 5
    assert found["roles"]["obey"]["attacked"]["attacker_wins"] == 5
    assert found["roles"]["do-nothing"]["benign"]["utility_passes"] == 0
    assert found["roles"]["refuse-all"]["harmful"]["resolved"] == 5


def test_a_check_for_people_says_the_same(fate):
    status, out, _ = fate("suites", "check", "workbench", *SMALL)
    assert status == 0
    assert "workbench: {'benign': 5, 'attacked': 5, 'harmful': 5}" in out
    assert "oracle" in out
    assert "defect" not in out


def test_a_suite_with_a_defect_ends_with_status_1(fate, desk):
    assert fate(*desk(GOOD))[0] == 0
    idle = {**GOOD, "id": "idle", "expect": {"answer": "."}}
    status, out, _ = fate(*desk(GOOD, idle), "--json")
    assert status == 1
    assert json.loads(out)["defects"] == ["idle: do-nothing passes the task", "idle: refuse-all passes the task"]
    status, out, _ = fate(*desk(GOOD, idle))
    assert status == 1
    assert "defect: idle: do-nothing passes the task" in out


@case("own environments", "fifty rows whose oracle fails", "fifty lines that say no more", "one line: count, cause")
def test_one_cause_is_printed_once(fate, desk):
    rows = [{**GOOD, "id": f"row-{n}", "expect": {"calls": [{"name": "rest"}]}} for n in range(50)]
    rows = [{**row, "oracle": {"calls": [{"name": "work"}, {"name": "rest"}]}} for row in rows]
    status, out, _ = fate(*desk(*rows))
    assert status == 1
    (line,) = [line for line in out.splitlines() if line.startswith("defect")]
    assert line == (
        "defect: 50 tasks (row-0, row-1, row-2, …): the oracle does not pass its own task (call rest, rest fails); "
        "row-0: call rest: wanted {}, found no such call; rest({}): it is no holiday"
    )
    found = json.loads(fate(*desk(*rows), "--json")[1])
    assert len(found["defects"]) == 50
    (cause,) = found["causes"]
    assert (cause["level"], cause["tasks"]) == ("defect", [f"row-{n}" for n in range(50)])


@case("own environments", "a class whose reset refuses every row", "an error a row and role", "one line: count, cause")
def test_one_error_is_printed_once(fate, desk):
    rows = [{**GOOD, "id": f"row-{n}", "environment": {"self": 1}} for n in range(9)]
    out = fate(*desk(*rows))[1]
    (line,) = [line for line in out.splitlines() if line.startswith("error")]
    assert line.startswith("error: 9 tasks (row-0, row-1, row-2, …): opening the episode failed: TypeError: ")


@case("own environments", "rows without scripts", "a line for each", "one line: count and the first names")
def test_rows_without_scripts_are_counted(fate, desk):
    rows = [{"prompt": "x", "kind": "attacked"} for _ in range(5)]
    out = fate(*desk(*rows))[1]
    assert "no oracle script: 5 tasks (0, 1, 2, …)" in out
    assert "no attack script: 5 tasks (0, 1, 2, …)" in out


@case("own environments", "the check's table in 80 columns", "headings cut to a letter or two", "every heading whole")
def test_the_table_keeps_its_headings_at_80_columns(fate, desk, monkeypatch):
    narrow = Console(file=io.StringIO(), width=80, highlight=False)
    monkeypatch.setattr(suites, "out", narrow)
    assert fate(*desk(GOOD))[0] == 0
    table = narrow.file.getvalue().partition("tools (")[0]
    assert max(map(len, table.splitlines())) <= 80
    for word in " ".join(suites.HEADS).split():
        assert re.search(rf"\b{word}\b", table), word
    assert "tools (2): rest, work" in narrow.file.getvalue(), "what TRL lists"
    assert "…" not in table


def test_a_suite_with_an_error_ends_with_status_1(fate, desk):
    broken = {**GOOD, "environment": {"self": 1}}
    status, out, _ = fate(*desk(broken), "--json")
    assert status == 1
    assert "opening the episode failed" in json.loads(out)["errors"][0]


def test_a_tasks_name_does_not_steer_the_terminal(fate, desk):
    status, out, _ = fate(*desk({**GOOD, "id": HOSTILE, "expect": {"answer": "."}}))
    assert status == 1
    assert f"defect: {VISIBLE}: do-nothing passes the task" in out
    assert "\x1b" not in out


def test_arguments_and_seed_reach_the_suite(fate, monkeypatch):
    asked = []

    def tasks(self, split, seed=0):
        asked.append((split, seed, self.sizes["test"]))
        return []

    monkeypatch.setattr("fate_trl.suites.workbench.suite.WorkbenchSuite.tasks", tasks)
    assert fate("suites", "check", "workbench", "--json", "--seed", 7, "--set", "test=3")[0] == 0
    assert set(asked) == {("all", 7, 3)}


# ------------------------------------------------------------------------------------------------ recipes copy


def test_a_recipe_is_copied_and_never_onto_another(fate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = fate("recipes", "copy", "quickstart")
    assert (status, out) == (0, "wrote quickstart.yaml\n")
    assert load_recipe(tmp_path / "quickstart.yaml") == load_recipe(shipped()["quickstart"])
    (tmp_path / "quickstart.yaml").write_text("mine")
    status, _, err = fate("recipes", "copy", "quickstart")
    assert status == 2
    assert "quickstart.yaml is there already" in err
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"
    assert fate("recipes", "copy", "quickstart", "other.yaml")[0] == 0
    assert (tmp_path / "other.yaml").exists()


def test_a_place_that_cannot_be_written_to(fate, tmp_path):
    status, _, err = fate("recipes", "copy", "quickstart", tmp_path / "absent" / "x.yaml")
    assert status == 2
    assert "No such file or directory" in err


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "quikstart"], "did you mean 'quickstart'?"),
        (["run", "quickstart", "--set", "repair.k=0"], "repair.k"),
        (["run", "quickstart", "--set", "selector=pareto-frnt"], "did you mean 'pareto-front'?"),
        (["run"], "give either a recipe, or --resume RUN"),
        (["eval", "embedded"], "--suite NAME"),
        (["suites", "check", "workbnch"], "did you mean 'workbench'?"),
        (["suites", "check", "workbench", "--set", "tests=3"], "did you mean 'test'?"),
        (["suites", "check", "workbench", "--set", "test=[1"], "'[1' is not a YAML value"),
        (["suites", "check", "workbench", "--set", "test=-1"], "cannot have -1 tasks"),
        (["suites", "check", "workbench", "--set", "test=2020-13-45"], "is not a YAML value"),
        (["suites", "check", ""], "no suite ''. There are: workbench"),
        (["run", "quickstart", "--set", "pfpo.learning_rate=fast"], "is the text 'fast'; it is of type float"),
        (["run", "quickstart", "--set", "verifiers=[]"], "verifiers: List should have at least 1 item"),
        (["run", "quickstart", "--set", "objectives=[]"], "objectives: List should have at least 1 item"),
        (["run", "quickstart", "--set", "rollout.temperature=.inf"], "rollout.temperature: Input should be a finite"),
        (["run", "quickstart", "--set", "seed=4294967296"], "seed: Input should be less than 4294967296"),
        (["run", "quickstart", "--set", "model.threads=100000000000"], "model.threads"),
        (["run", "quickstart", "--set", "model=embedded"], "model: Input should be a mapping of keys to values, not"),
        (["run", "quickstart", "--set", "output_dir=/"], "has no name of its own"),
        (["eval", "embedded", "--suite", "workbench", "--output", "."], "has no name of its own"),
    ],
)
def test_an_error_is_said_in_words_and_ends_with_status_2(fate, arguments, says):
    status, out, err = fate(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert says in err


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (b"", "must hold a mapping"),
        (b"[a]", "must hold a mapping"),
        (b"a: [1", "cannot be read as YAML"),
        (b"a: 2020-13-45", "cannot be read as YAML"),
        (b"[" * 5000, "cannot be read as YAML"),
        (b"\xff\xfe", "cannot be read as YAML"),
        (b"rounds: 1", "needs the key 'suites'"),
        (b"{suites: [workbench], model: x}", "model: Input should be a mapping"),
        (b"{suites: [workbench], evaluation: null}", "evaluation: Input should be a mapping"),
    ],
)
def test_a_damaged_recipe_of_a_run_is_an_error_for_all_commands(fate, tmp_path, recipe, says):
    (tmp_path / "recipe.yaml").write_bytes(recipe)
    for arguments in (["eval", tmp_path], ["run", "--resume", tmp_path], ["run", tmp_path / "recipe.yaml"]):
        status, _, err = fate(*arguments)
        assert status == 2, arguments
        assert says in err, arguments


def test_a_run_given_as_a_recipe_is_told_how_to_go_on(fate, tmp_path):
    (tmp_path / "recipe.yaml").write_text("suites: [workbench]")
    status, _, err = fate("run", tmp_path)
    assert status == 2
    assert f"--resume {tmp_path}" in err


def test_a_plugin_file_that_ends_the_program_is_an_error(fate, tmp_path):
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    status, _, err = fate("suites", "check", tmp_path / "exits.py")
    assert status == 2
    assert "cannot be imported: SystemExit: 3" in err


def test_an_error_does_not_steer_the_terminal(fate):
    status, _, err = fate("run", "a\x1b[2J[red]b")
    assert status == 2
    assert "\x1b" not in err
    assert "[red]b" in err


def test_a_wrong_option_is_the_parsers_error(fate):
    status, _, err = fate("plugins", "--jsn")
    assert status == 2
    assert "--jsn" in err


# ------------------------------------------------------------------------------------------------ runs, without torch


def test_a_run_never_writes_into_another(tmp_path):
    assert fresh(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert fresh(tmp_path / "run") == tmp_path / "run-2"
    (tmp_path / "run-2").touch()
    assert fresh(tmp_path / "run") == tmp_path / "run-3"


def test_the_policy_of_a_run_is_the_last_accepted_one(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.policy_folder() is None
    (tmp_path / "rounds/00/after-warm_start").mkdir(parents=True)
    assert run.policy_folder() == tmp_path / "rounds/00/after-warm_start"
    for round, accepted in ((1, True), (2, True), (3, False)):
        (tmp_path / f"rounds/{round:02d}/policy").mkdir(parents=True)
        run.append(f"rounds/{round:02d}/stages.jsonl", [{"stage": "accept", "accepted": accepted}])
    (tmp_path / "rounds/04/policy").mkdir(parents=True)  # not judged yet
    assert run.policy_folder() == tmp_path / "rounds/02/policy"
    assert run.policy_folder(0) == tmp_path / "rounds/00/after-warm_start"
    assert run.policy_folder(3) == tmp_path / "rounds/03/policy", "one that was rolled back can be looked at too"
    with pytest.raises(LedgerError, match="no policy of round 5"):
        run.policy_folder(5)


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt, 130), (ZeroDivisionError, None)])
def test_however_a_run_stops_the_way_on_is_said(tmp_path, capsys, stop, status):
    def stopped():
        with explained(RunDirectory(tmp_path / "run"), "eval"):
            (tmp_path / "run/rounds/00").mkdir(parents=True)
            raise stop

    with pytest.raises(SystemExit if status else stop) as end:
        stopped()
    assert getattr(end.value, "code", None) == status
    assert f"fate-trl eval --resume {tmp_path}/run" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [RecipeError, PluginError, SuiteError])
def test_what_a_resumed_run_would_stop_at_again_is_no_way_on(tmp_path, capsys, wrong):
    def stopped():
        with explained(RunDirectory(tmp_path / "run"), "eval"):
            (tmp_path / "run/rounds/00").mkdir(parents=True)
            raise wrong("there is no such thing")

    with pytest.raises(wrong):
        stopped()
    assert "--resume" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "stages", "rows", "over"),
    [
        (2, {1: ["accept"], 2: ["accept"]}, [], True),
        (2, {1: ["accept"], 2: ["collect"]}, [], False),
        (2, {1: ["accept"]}, [1], False),
        (0, {0: ["eval-test"]}, [1], True),
        (0, {0: ["eval-test"]}, [], False),
    ],
)
def test_a_finished_run_is_told_from_one_to_go_on_with(tmp_path, asked, stages, rows, over):
    run = RunDirectory(tmp_path)
    for round, names in stages.items():
        run.append(f"rounds/{round:02d}/stages.jsonl", [{"stage": name, "accepted": True} for name in names])
    if rows:
        run.write_json("metrics.json", {"rows": rows})
    assert finished(run, make_recipe({"suites": ["workbench"], "rounds": asked})) is over


def test_a_key_that_is_set_twice_is_refused(fate):
    for command in (
        ("check", "quickstart"),
        ("suites", "check", "workbench"),
        ("eval", "embedded", "--suite", "workbench"),
    ):
        status, out, err = fate(*command, "--set", "seed=1", "--set", "seed=2")
        assert status
        assert "--set gives seed twice, as 'seed=1' and as 'seed=2'" in " ".join((out + err).split())


@pytest.mark.parametrize(
    ("number", "things", "said"),
    [
        (1, "cases", "1 case"), (2, "cases", "2 cases"), (0, "tries", "0 tries"), (1, "tries", "1 try"),
        (1, "trajectories", "1 trajectory"), (1200, "trajectories", "1,200 trajectories"), (1, "steps", "1 step"),
    ],
)  # fmt: skip
def test_one_is_not_put_in_the_plural(number, things, said):
    assert counted(number, things) == said


def test_the_table_says_what_its_short_names_mean():
    screen = Console(file=io.StringIO(), width=120)
    screen.print(metrics_table([row("base", 0, 0.4)]))
    said = screen.file.getvalue()
    assert "asr attack success" in said
    assert "tsr" not in said, "a name that is not in the table needs no words"


def row(policy, round, value, accepted=True, **changes):
    metric = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40, "clusters": 40}
    head = {"round": round, "split": "test", "suite": "all", "kind": "all", "policy": policy, "accepted": accepted}
    return {**head, "metrics": {"resolved": metric, "asr": metric}, "errors": {}, **changes}


def test_the_table_shows_values_with_intervals_before_after_and_baselines():
    rows = [row("oracle", 0, 0.9), row("base", 0, 0.4), row("round-1", 1, 0.6), row("round-2", 2, 0.3, accepted=False)]
    rows += [row("x", 1, 0.7, kind="benign"), row("y", 1, 0.7, split="validation"), row("z", 1, 0.7, suite="mine")]
    screen = Console(file=io.StringIO(), width=120)
    screen.print(metrics_table(rows))
    lines = [line.split() for line in screen.file.getvalue().splitlines()]
    assert lines[0] == ["test", "split,", "40", "tasks,", "%", "with", "95", "%", "intervals"]
    words = [word for line in lines[: lines.index(["resolved", "↑", "40", "60", "30", "90"])] for word in line]
    assert words.count("round-") == 2, "names break at their hyphens"
    assert {"base", "1", "2", "oracle", "(rolled", "back)"} <= set(words)
    at = lines.index(["resolved", "↑", "40", "60", "30", "90"])
    assert lines[at + 1] == ["30–50", "50–70", "20–40"], "scripts are there for scale, and need no interval"
    assert any(line[:2] == ["asr", "↓"] for line in lines)
    assert not any("hcr" in line for line in lines), "what nobody measured is left out"


def test_the_table_shows_objectives_that_are_not_the_four():
    """Somebody's verifier must not be measured unseen."""
    mine = row("base", 0, 0.4)
    mine["metrics"] |= {"mean_brief": mine["metrics"]["resolved"], "mean_utility": mine["metrics"]["resolved"]}
    screen = Console(file=io.StringIO(), width=120)
    screen.print(metrics_table([mine]))
    assert "mean_brief ↑" in screen.file.getvalue()
    assert "mean_utility" not in screen.file.getvalue()


def test_a_suite_with_arguments_can_be_evaluated(fate, tmp_path):
    sets = 'suites=[{name: jsonl, args: {path: absent.jsonl, environment: "absent.py:Shop", splt: test}}]'
    status, _, err = fate("eval", "embedded", "--set", sets)
    assert status == 2
    assert "suite 'jsonl' does not take 'splt'" in err
