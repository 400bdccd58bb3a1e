"""The README's snippets, executed as they stand; only the hub id is replaced by a tiny model on disk."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import tiny
import yaml
from typer.testing import CliRunner

from fate_trl import plugins
from fate_trl.cli import app
from fate_trl.recipe.loading import make_recipe
from fate_trl.suites.checking import check_suite
from fate_trl.types import Task, Trajectory

README = Path(__file__).parent.parent / "README.md"
THREE_ROWS = README.parent / "docs" / "tutorials" / "three-rows.md"


def snippets(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def snippet(language: str, holding: str, page: Path = README) -> str:
    (found,) = [text for text in snippets(language, page) if holding in text]
    return found


def test_swapping_the_trainer(tmp_path, monkeypatch):
    tokenizer = tiny.make_tokenizer()
    tiny.make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    code = snippet("python", "PFPOTrainer").replace("Qwen/Qwen3-0.6B", str(tmp_path / "model"))
    assert str(tmp_path) in code
    code = code.replace(
        "max_steps=2", "max_steps=2, use_cpu=True, bf16=False, report_to='none', max_completion_length=8"
    )
    names: dict = {}
    exec(code, names)
    assert names["trainer"].state.global_step == 2
    assert names["trainer"].objectives == ("short", "on_topic")


def test_a_verifier_in_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_verifier.py").write_text(snippet("python", "class Brief"))
    brief = plugins.load("verifier", "./my_verifier.py", {"words": 3})
    task = Task("t", "s", "benign", ({"role": "user", "content": "hi"},))
    said = [({"role": "assistant", "content": text},) for text in ("all is well", "all is very well indeed")]
    scores = brief.score([Trajectory(task=task, messages=messages) for messages in said])
    assert [score["brief"].value for score in scores] == [1.0, 0.0]


def test_tasks_and_tools_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(snippet("python", "class Shop", THREE_ROWS))
    (tmp_path / "tasks.jsonl").write_text(snippet("json", "neighbour", THREE_ROWS))
    recipe = yaml.safe_load(snippet("yaml", "Qwen3-1.7B", THREE_ROWS))
    suite = plugins.load("suite", "jsonl", make_recipe(recipe).suites[0].args)
    found = check_suite(suite)
    assert found["tasks"] == {"benign": 1, "attacked": 1, "harmful": 1}
    assert not found["defects"]
    assert found["roles"]["oracle"]["benign"]["resolved"] == 1


def test_commands_and_options_exist():
    lines = [line.split("#")[0].strip() for text in snippets("bash") for line in text.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("fate-trl")]
    assert len(commands) >= 7
    for command in commands:
        words = [word for word in command[1:] if not word.startswith("-")]
        asked = words[:2] if words[0] == "suites" and words[1:2] == ["check"] else words[:1]
        result = CliRunner().invoke(app, [*asked, "--help"], terminal_width=200)
        assert result.exit_code == 0, command
        for option in [word for word in command if word.startswith("--")]:
            assert option in result.output, command


def test_make_targets_and_linked_files_exist():
    text, root = README.read_text(encoding="utf-8"), README.parent
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (demo|test|lint|slow|install)\b", text))
    assert {"demo", "test"} <= targets
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_a_newcomer_reads_it_in_one_sitting():
    assert len(README.read_bytes()) <= 7 * 1024


def test_every_results_page_stands_in_the_index():
    index = README.parent / "docs" / "results" / "index.md"
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index.read_text(encoding="utf-8")))
    assert linked == {page.name for page in index.parent.glob("*.md")} - {"index.md"}
