"""Chat templates of real families: what `check` says of each, and a rollout that then confirms it."""

import pytest

from benchmarks import families
from benchmarks.templates import FORKS, judged
from fate_trl.errors import RecipeError
from fate_trl.recipe.schema import Model
from fate_trl.train import templates

FINE, THINKS, NO_TOOLS, UNKNOWN = "ok", "warning", "does not render tool calls", "does not recognise"

VERDICTS = {
    "qwen2_5": FINE,
    "qwen3": THINKS,
    "qwen3_instruct_2507": FINE,
    "qwen3_5_nothink": FINE,
    "qwen3_8": THINKS,
    "llama3_1": FINE,
    "gptoss": FINE,
    "glm4moe": THINKS,
    "lfm2_2_5": FINE,
    "nemotron_3_nano": THINKS,
    "gemma4_v5": THINKS,
    "llama3": NO_TOOLS,
    "gemma3": NO_TOOLS,
    "phi3": NO_TOOLS,
    "cohere2": NO_TOOLS,
    "deepseekv3": UNKNOWN,
    "qwen3 + a comment": UNKNOWN,
    "qwen3 + a comment, tool_parser: qwen3": "is not prefix-preserving",
    "qwen2_5 + a comment": "Set model.tool_parser: qwen3, which reads them back",
    "qwen2_5 + a comment, tool_parser: hermes": FINE,
    "qwen2_5, chat_template: chatml_json": FINE,
    "llama3_1 + a comment, tool_parser: json": FINE,
    "phi3, chat_template: qwen3_instruct_2507": FINE,
}
"""One of each family that TRL ships, and forks; all of them are in docs/results/templates.md."""


@pytest.mark.parametrize("name", VERDICTS)
def test_a_rollout_confirms_the_verdict(name):
    row, wanted = judged(name), VERDICTS[name]
    if wanted in (FINE, THINKS):
        assert (row["verdict"], row["rollout"]) == (wanted, "executed")
    else:
        assert row["verdict"] == "error"
        assert wanted in row["reason"]
        assert row["rollout"] != "executed"
    assert row["confirmed"]


def test_every_fork_names_a_template_that_trl_ships():
    assert {base for base, _ in FORKS.values()} <= set(families.names())


def test_a_wrong_parser_is_seen():
    tokenizer = families.tokenizer("llama3_1")
    call, tool = templates.CALL["function"], templates.TOOL
    messages = [{"role": "user", "content": "Who is Ada?"}]
    tokenizer.response_template = templates.response_template("llama3")
    assert templates.read_back(tokenizer, messages, call, [tool]) is None
    tokenizer.response_template = templates.response_template("qwen3")
    assert "no call, but the text" in templates.read_back(tokenizer, messages, call, [tool])


@pytest.mark.parametrize(
    ("name", "parsers"),
    [("qwen3", ["qwen3", "hermes", "json"]), ("llama3_2", ["llama3", "json"]), ("glm4moe", ["glm4moe"])],
)
def test_parsers_that_fit_are_found_by_reading_back(name, parsers):
    tokenizer = families.tokenizer(name)
    assert templates.parsers_of(tokenizer) == parsers
    assert getattr(tokenizer, "response_template", None) is None, "it is left as it was"


def test_a_tokenizer_gets_the_version_for_training_where_its_own_is_not_prefix_preserving():
    tokenizer = templates.prepare(families.tokenizer("qwen3"), Model())
    messages = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "", "tool_calls": [templates.CALL]},
    ]
    before = templates.render(tokenizer, messages, [templates.TOOL])
    after = templates.render(
        tokenizer, [*messages, {"role": "tool", "name": "look_up", "content": "Ada"}], [templates.TOOL]
    )
    assert after[: len(before)] == before


@pytest.mark.parametrize(
    ("name", "kwargs", "state"),
    [
        ("qwen3", {}, ("free", True)),
        ("qwen3", {"enable_thinking": False}, ("closed", True)),
        ("qwen2_5", {}, ("none", False)),
        ("nemotron_3_nano", {}, ("opened", True)),
    ],
)
def test_thinking(name, kwargs, state):
    assert templates.thinking(families.tokenizer(name), **kwargs) == state


def test_a_template_from_a_file(tmp_path):
    (tmp_path / "own.jinja").write_text(families.tokenizer("qwen2_5").chat_template)
    tokenizer = templates.prepare(families.tokenizer("phi3"), Model(chat_template=str(tmp_path / "own.jinja")))
    assert "<tool_call>" in tokenizer.chat_template
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(RecipeError, match="does not render tool calls"):
        templates.prepare(families.tokenizer("phi3"), Model(chat_template=str(tmp_path / "own.jinja")))
