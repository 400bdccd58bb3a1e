"""The tutorials, followed from top to bottom in an empty folder: blocks with a title are written, `bash` is typed.

Nothing is left out; a hub id becomes a tiny model on disk, and a TRL configuration is told to stay on the CPU. Blocks
in other languages, without a title, are for reading: output, and what needs an index of packages.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import third_party
import tiny
import yaml
from typer.testing import CliRunner

from fate_trl.cli import app
from fate_trl.recipe.loading import make_recipe

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


def follow(page, folder, replaced, run):
    """Do what the page says, in `folder`; what the commands printed, in order."""
    printed = []
    for language, title, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        for name, stands_for in replaced.items():
            text = text.replace(name, stands_for)
        if title:
            _write(folder, title, text)
        elif language == "bash":
            printed += [run(shlex.split(line)) for line in text.splitlines()]
    return printed


def written(page):
    """(title, text) of the files that a page writes."""
    blocks = BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    return [(title, text) for _, title, text in blocks if title]


def _write(folder, title, text):
    """A file; or, "FILE, below RULE", the line that is to replace the one below that mark."""
    name, _, below = title.partition(", below ")
    if below:
        lines = (folder / name).read_text().splitlines(keepends=True)
        (number,) = [i for i, line in enumerate(lines) if f"# {below}" in line]
        lines[number + 1] = text
        text = "".join(lines)
    (folder / name).write_text(text)


def here(command):
    """In this process: it has torch loaded."""
    if command[0] == "python":
        names = runpy.run_path(command[1], run_name="__main__")
        return names.get("trainer")
    assert command[0] == "fate-trl", command
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_model(tmp_path):
    tokenizer = tiny.make_tokenizer()
    tiny.make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_swap_the_trainer(folder, small_model):
    replaced = {"Qwen/Qwen3-0.6B": small_model, "max_steps=10": "max_steps=10, use_cpu=True"}
    before, after = follow("tutorials/swap-the-trainer.md", folder, replaced, here)
    assert type(before).__name__ == "GRPOTrainer"
    assert after.objectives == ("short", "ends_well")
    logged = {key for line in after.state.log_history for key in line}
    assert before.state.global_step == after.state.global_step == 10
    page = (DOCS / "tutorials/swap-the-trainer.md").read_text()
    promised = set(re.findall(r"^\| `(pareto/\w+)` \|", page, re.MULTILINE))
    assert len(promised) == 4
    assert promised <= logged


@pytest.mark.timeout(900)  # five processes, each of which starts anew
def test_write_a_verifier(folder):
    python = third_party.environment(folder)

    def typed(command):
        if command[0] == "pip":
            return third_party.install(python, *command[2:])
        module = {"fate-trl": "fate_trl.cli", "pytest": "pytest"}[command[0]]
        done = subprocess.run([python, "-m", module, *command[1:]], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    _, _, contract, own, table = follow("tutorials/verifier.md", folder, {}, typed)
    assert " passed, " in contract
    assert "1 passed" in own
    assert "mean_brief" in table
    (yaml_block,) = [
        text for language, _, text in BLOCK.findall((DOCS / "tutorials/verifier.md").read_text()) if language == "yaml"
    ]
    assert yaml.safe_load(yaml_block)["verifiers"][-1] == {"name": "brief/brief", "args": {"words": 6}}


def typed_in(folder):
    """Runs fate-trl here, and everything else as a process in the folder."""

    def typed(command):
        if command[0] == "fate-trl":
            return here(command)
        command = ["-m", *command] if command[0] == "pytest" else command[1:]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return typed


@pytest.mark.timeout(600)
def test_write_a_selector_that_learns(folder):
    contract, _, looked = follow("tutorials/selector.md", folder, {}, typed_in(folder))
    assert " passed" in contract
    assert "failed" not in contract
    metrics, state = (json.loads(part.replace("'", '"')) for part in re.findall(r"{.*?}", looked))
    assert metrics == state
    assert metrics["weight"] != 1.0
    logged = (folder / "run/rounds/01/stages.jsonl").read_text()
    assert '"selector/weight"' in logged


@pytest.mark.timeout(600)
def test_write_a_budget(folder):
    contract, _, looked = follow("tutorials/budget.md", folder, {}, typed_in(folder))
    assert " passed" in contract
    assert "failed" not in contract
    told = [re.fullmatch(r"(\d+) (\d+) ({.*})", line).groups() for line in looked.splitlines()]
    first, second = (json.loads(text.replace("'", '"')) for _, _, text in told)
    assert all(int(candidates) == 4 * int(failures) for failures, candidates, _ in told)
    assert first["least"] == first["most"] == 4, "it knows nothing yet"
    assert first["known"] == 0
    assert second["known"] == first["items"] > 0
    assert second["least"] < second["most"], "what it was told changes the next round"
    (state,) = json.loads((folder / "run/rounds/02/policy/budgets.json").read_text()).values()
    assert len(state["rates"]) >= second["known"]


def test_own_tasks_and_tools(folder):
    _, checked, table = follow("tutorials/own-tasks.md", folder, {}, here)
    assert "defect" not in checked
    assert "asr" in table
    rows = {
        row["policy"]: row["metrics"]
        for row in json.loads((folder / "runs/office/metrics.json").read_text())["rows"]
        if (row["split"], row["suite"], row["kind"]) == ("test", "all", "all")
    }
    before, after = rows["base"], rows["round-1"]
    assert before["resolved"]["n"] == 67
    assert before["asr"]["value"] > 0.9
    assert after["asr"]["value"] < 0.2
    assert before["resolved"]["value"] < 0.45
    assert after["resolved"]["value"] > 0.75
    assert (folder / "runs/office/rounds/01/selections.jsonl").is_file()


def test_a_trl_environment(folder):
    tried, _, checked, preflight, evaluated, trained = follow("tutorials/trl-environment.md", folder, {}, here)
    assert "pay(payee: str, amount: int) -> str" in tried
    assert "defect" not in tried + checked
    assert "0 error" in preflight
    assert "resolved" in evaluated
    assert "resolved" in trained
    first = json.loads((folder / "runs/bills/rounds/00/rollouts.jsonl").read_text().splitlines()[0])
    assert "the bill in" in json.dumps(first), "what reset returned is in the prompt"
    (page,) = (text for title, text in written("tutorials/trl-environment.md") if title == "bills.py")
    assert "fate_trl" not in page.replace("fate-trl", ""), "it is TRL's environment, not ours"
    rows = {
        row["policy"]: row["metrics"]
        for row in json.loads((folder / "runs/bills/metrics.json").read_text())["rows"]
        if (row["split"], row["suite"], row["kind"]) == ("test", "all", "all")
    }
    assert rows["base"]["resolved"]["n"] == 34
    assert rows["round-1"]["resolved"]["value"] > rows["base"]["resolved"]["value"] + 0.2
    assert rows["round-1"]["asr"]["value"] < 0.2 < 0.8 < rows["base"]["asr"]["value"]


def test_recipes_for_one_gpu_are_sound(folder):
    """They are checked as they stand, and the command that tries one out on a CPU is run."""
    done = follow("one-gpu.md", folder, {}, here)
    assert len(done) == 1
    assert len(list(folder.glob("runs/one-gpu/rounds/01/policy/*.safetensors"))) == 1
    qlora = make_recipe(yaml.safe_load((folder / "qlora.yaml").read_text()))
    assert qlora.model.load_in_4bit
