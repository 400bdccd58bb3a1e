"""A run's policy is described and taken along: the card from the records alone, merged weights that say the same."""

import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from fate_trl import cli
from fate_trl.errors import LedgerError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.recipe.schema import Lora, Model, Recipe
from fate_trl.report.model_card import model_card
from fate_trl.train.models import load_model, merge_adapter

HOSTILE = "x | <script>alert(1)</script> ![](http://evil/x.png) \x1b[2J\n# Heading\n---"


def row(policy, round, value, suite="all"):
    metric = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40, "clusters": 40}
    head = {"round": round, "split": "test", "suite": suite, "kind": "all", "policy": policy, "accepted": True}
    return {**head, "metrics": {"resolved": metric, "asr": metric, f"mean_{HOSTILE}": metric}, "errors": {}}


@pytest.fixture
def run(tmp_path):
    """A finished run of one round."""
    run = RunDirectory(tmp_path / "shop")
    recipe = Recipe.model_validate({"suites": ["workbench"], "rounds": 1, "model": {"path": "org/base", "lora": {}}})
    run.write_text("recipe.yaml", recipe.dump())
    suites = {"workbench": {"version": 3, "licence": "MIT"}, HOSTILE: {}}
    run.write_json("manifest.json", {"fate_trl": "0.1", "packages": {"trl": "1.16"}, "suites": suites})
    names = (("base", 0, 0.25), ("refuse-all", 0, 0.3), ("oracle", 0, 1.0), ("round-1", 1, 0.75))
    rows = [row(*name, suite) for name in names for suite in ("all", "workbench")]
    run.write_json("metrics.json", {"schema": 1, "rows": rows})
    run.append("rounds/01/stages.jsonl", [{"stage": "accept", "accepted": True}])
    run.write_text("rounds/01/policy/adapter_config.json", "{}")
    run.write_text("rounds/01/policy/README.md", "peft's own")
    return run


@pytest.fixture
def fate(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fate-trl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return call


def test_a_card_has_front_matter_tables_licences_limits_and_the_recipe(run):
    card = ModelCard(model_card(run, 1, "org/base"))
    assert card.data.base_model == "org/base"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"resolved": 0.75, "asr": 0.75}
    lines = card.content.splitlines()
    assert "| Safety | base | round-1 | refuse-all |" in lines
    assert "| asr ↓ | 25.0 [15.0, 35.0] (n 40) | 75.0 [65.0, 85.0] (n 40) | 30.0 [20.0, 40.0] (n 40) |" in lines
    assert "| workbench | 3 | MIT |" in lines
    assert "## Limits" in lines
    assert "    model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)" in lines
    recipe = "\n".join(line[4:] for line in lines[lines.index("    model:") :])
    assert yaml.safe_load(recipe)["rounds"] == 1


def test_names_in_a_card_are_only_names(run):
    text = model_card(run, 1)
    assert "<script" not in text
    assert "![](" not in text
    assert "\x1b" not in text
    assert "\n# Heading" not in text


def test_a_card_needs_metrics_of_its_round(run):
    with pytest.raises(LedgerError, match="no test metrics of round 4"):
        model_card(run, 4)


def test_a_card_of_a_run_that_left_its_test_says_so(run):
    recipe = Recipe.model_validate({"suites": ["workbench"], "rounds": 1, "evaluation": {"tasks": 0}})
    run.write_text("recipe.yaml", recipe.dump())
    run.write_json("metrics.json", {"schema": 1, "rows": []})
    card = ModelCard(model_card(run, 1))
    assert card.data.eval_results is None
    assert "Nothing: its run left the test to `fate-trl eval`." in card.content
    assert "# shop-round-1" in card.content


def test_a_card_and_an_adapter_are_written_without_a_token(run, fate, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    target = tmp_path / "card.md"
    assert fate("card", run.path, "-o", target)[0] == 0
    assert target.read_text() == model_card(run, 1, "org/base")
    assert "is there already" in fate("card", run.path, "-o", target)[2]
    assert fate("save", run.path, tmp_path / "taken")[0] == 0
    assert (tmp_path / "taken/adapter_config.json").read_text() == "{}"
    assert (tmp_path / "taken/README.md").read_text() == target.read_text()


def test_a_save_that_fails_leaves_nothing_half_written(run, fate, tmp_path, monkeypatch):
    def full(folder, target, **_):
        Path(target).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fate_trl.cli.card.shutil.copytree", full)
    status, _, err = fate("save", run.path, tmp_path / "taken")
    assert status == 2
    assert "No space left on device; give another place" in err
    assert not (tmp_path / "taken").exists()


def test_a_push_without_a_token_is_an_error_before_any_work(run, fate, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    status, _, err = fate("save", run.path, tmp_path / "taken", "--push", "me/shop")
    assert status == 2
    assert "--push needs a token" in err
    assert not (tmp_path / "taken").exists()


def test_a_push_makes_a_private_repository_and_uploads_the_folder(run, fate, tmp_path, monkeypatch):
    asked = []

    class Api:
        def create_repo(self, *args, **settings):
            asked.append(("create", args, settings))

        def upload_folder(self, **settings):
            asked.append(("upload", settings))

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert fate("save", run.path, tmp_path / "taken", "--push", "me/shop")[0] == 0
    folder = {"repo_id": "me/shop", "folder_path": str(tmp_path / "taken")}
    assert asked == [("create", ("me/shop",), {"private": True, "exist_ok": True}), ("upload", folder)]


def test_merged_weights_say_what_the_adapter_says(tmp_path):
    torch.manual_seed(0)
    model = Model(lora=Lora(r=4))
    trained, tokenizer = load_model(model)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)  # a fresh adapter changes nothing
    trained.save_pretrained(tmp_path / "adapter")
    merge_adapter(model, tmp_path / "adapter", str(tmp_path / "merged"))
    merged, _ = load_model(Model(path=str(tmp_path / "merged")))
    base, _ = load_model(Model())
    ids = tokenizer("Pay the bill of Ann.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = [loaded.eval()(input_ids=ids).logits for loaded in (trained, merged, base)]
    assert (logits[0] - logits[1]).abs().max() < 1e-5
    assert (logits[0] - logits[2]).abs().max() > 1e-2
