"""What SECURITY.md promises of the code itself, and of the built-in suites."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_architecture import files

import fate_trl
from fate_trl.choose.repairs import Reflect
from fate_trl.cli import main
from fate_trl.cli.tables import metrics_table
from fate_trl.errors import InterchangeError, ToolError
from fate_trl.record import CUT, DEPTH, dumps
from fate_trl.suites.episodes import Recorder
from fate_trl.suites.workbench.suite import WorkbenchSuite
from fate_trl.testing.hostile import HOSTILE, live_terminal, record
from fate_trl.types import Failure, RolloutRequest

ROOT = Path(fate_trl.__file__).parents[1]
PLUGINS = sorted(path for path in ROOT.glob("plugins/*/fate_trl_*/**/*.py"))

FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}


def trees():
    yield from files()
    for path in PLUGINS:
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def wrongs(name, tree):
    """What a file does that SECURITY.md says nothing does."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{name}:{node.lineno} imports {m}" for m in modules if m.split(".")[0] in FORBIDDEN)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in ("eval", "exec", "compile", "__import__", "os.system", "torch.jit.load"):
            yield f"{name}:{node.lineno} calls {called}"
        if called == "yaml.load" and given.get("Loader") != "_Loader":  # recipe.py's, a SafeLoader
            yield f"{name}:{node.lineno} loads YAML unsafely"
        if called == "torch.load" and given.get("weights_only") != "True":
            yield f"{name}:{node.lineno} loads a pickle"
        if "trust_remote_code" in given or given.get("shell") == "True":
            yield f"{name}:{node.lineno} trusts {sorted(given)}"


def test_no_pickle_no_eval_no_unsafe_yaml_no_remote_code():
    assert [wrong for name, tree in trees() for wrong in wrongs(name, tree)] == []
    assert PLUGINS


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import load",
        "eval(text)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_reader_sees_each_of_them(line):
    assert list(wrongs("file", ast.parse(line)))


def test_the_recipes_loader_is_a_safe_one():
    import yaml

    from fate_trl.recipe.loading import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)


def test_the_built_in_suites_run_no_code_open_no_socket_and_write_no_file(tmp_path):
    """Every role on every kind of task, under an audit hook that stops what a suite has no business to do."""
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "Refund order 17.", "expect": {"answer": "Done"}}\n')
    (tmp_path / "orders.py").write_text(
        'class Orders:\n    def reset(self) -> None:\n        pass\n\n    def look(self, order: str) -> str:\n'
        '        """Look.\n\n        Args:\n            order: Which.\n        """\n        return order\n'
    )  # fmt: skip
    code = """
import json, sys
from fate_trl import plugins
from fate_trl.suites import checking
workbench = plugins.load("suite", "workbench", {"train": 12, "validation": 3, "test": 12})
own = plugins.load("suite", "jsonl", {"path": "tasks.jsonl", "environment": "orders.py:Orders"})
# Once without the hook, so that all imports are done.
checking.check_suite(plugins.load("suite", "workbench", {"train": 3, "validation": 0, "test": 0}))
seen = []
def hook(event, arguments):
    writes = event == "open" and not str(arguments[1] or "r").startswith("r")
    if writes or event.split(".")[0] in ("socket", "subprocess", "exec", "compile", "ctypes") or event in (
        "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "pickle.find_class"
    ):
        seen.append(f"{event} {arguments!r:.200}")
sys.addaudithook(hook)
for suite in (workbench, own):
    checking.check_suite(suite)
done = list(seen)
open("proof", "w").close()  # the hook does see
print(json.dumps([done, len(seen) > len(done)]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], True]


# ------------------------------------------------------------------------------------------------ hostile text


def test_no_text_of_an_error_steers_the_terminal(monkeypatch, capsys):
    for name, text in HOSTILE.items():

        def fail(text=text, **_):
            raise InterchangeError(text)

        monkeypatch.setattr("fate_trl.cli.app", fail)
        with pytest.raises(SystemExit):
            main()
        screen = capsys.readouterr().err
        assert live_terminal(screen) == "", name
        assert len(screen) < 60_000, name  # a megabyte is cut
        if text.isprintable() and len(text) < 1000:
            assert text in screen, name  # and rich's markup is text


def test_no_name_of_a_policy_or_objective_steers_the_table():
    from rich.console import Console

    value = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 5}
    for name, text in HOSTILE.items():
        if len(text) > 1000:
            continue
        row = {"split": "test", "suite": "all", "kind": "all", "round": 0, "accepted": True, "errors": {}}
        row |= {"policy": text, "metrics": {"resolved": value, f"mean_{text}": value}}
        console = Console(width=200, force_terminal=False)
        with console.capture() as captured:
            console.print(metrics_table([row]))
        assert live_terminal(captured.get()) == "", name


def test_a_repair_prompt_quotes_hostile_text_on_lines_of_its_own_short_and_encodable():
    for name, text in HOSTILE.items():
        trajectory, card = record(text)
        (*_, last) = Reflect().prompt(Failure(trajectory, card))
        quoted = last["content"].split("An earlier attempt failed:")[1].split("What was wrong:")[0].encode().decode()
        lines = [line for line in quoted.splitlines() if line.strip()]
        starts = ("you said: ", "you called: ", "result: ")
        if len(text) < 500 and "\n" not in text and text.isprintable():  # a name with line breaks is cut below
            assert all(line.startswith(starts) for line in lines), name


def test_arguments_nested_without_end_are_the_policys_fault_and_break_nothing():
    suite = WorkbenchSuite(train=3, validation=0, test=0)
    task = next(iter(suite.tasks("train")))
    recorder = Recorder(suite, RolloutRequest(task, task.messages))
    deep: list = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(ToolError, match=f"nested deeper than {DEPTH}"):
        recorder.call("send", {"to": deep, "text": "x"})
    assert not recorder.error
    assert recorder.calls[-1].fault == "arguments"
    assert "nested too deeply" in dumps({"a": deep})
    call = {"type": "function", "function": {"name": "send", "arguments": {"to": deep, "text": "x"}}}
    made = recorder.trajectory([{"role": "assistant", "content": "", "tool_calls": [call]}], "calls", "p")
    assert made.messages[0]["tool_calls"][0]["function"] == {"name": "send", "arguments": CUT}
    assert not made.error
    assert call["function"]["arguments"]["to"] is deep, "what the policy's side holds is not changed"
