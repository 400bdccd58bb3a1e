"""Merged weights, the stage `merge` of a round, and `fate-trl merge`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_checkpoints import Killed
from test_preference import RUN
from test_stages import folder, learner  # noqa: F401 (a fixture)
from typer.testing import CliRunner

from fate_trl import plugins
from fate_trl.cli import app
from fate_trl.errors import FateError, PluginError, RecipeError
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.merging import checked, means
from fate_trl.recipe.components import components_of
from fate_trl.recipe.loading import make_recipe
from fate_trl.serve.target import values_of
from fate_trl.suites.scripted import ScriptedLearner
from fate_trl.train.merging import merge_weights
from fate_trl.types import Score, ScoreCard

torch.set_num_threads(1)


def adapter(path, seed, rank=2, alpha=4, **settings):
    """A saved adapter on the tiny model, with random weights on both sides."""
    settings = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    config = LoraConfig(r=rank, lora_alpha=alpha, **settings)
    model = get_peft_model(tiny.make_model(tiny.make_tokenizer()), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(str(path))
    return path


def whole(path, seed):
    model = tiny.make_model(tiny.make_tokenizer())
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(str(path))
    return path


def products(path):
    """What an adapter adds to each layer."""
    config, tensors = (
        json.loads((path / "adapter_config.json").read_text()),
        load_file(path / "adapter_model.safetensors"),
    )
    names = [key.removesuffix("lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    scale = config["lora_alpha"] / config["r"]
    return {n: scale * tensors[f"{n}lora_B.weight"] @ tensors[f"{n}lora_A.weight"] for n in names}


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("coefficients", [(0.5, 0.5), (1.3, -0.3), (1.0, 0.0)])
def test_adapters_are_merged_on_their_products(tmp_path, coefficients):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2, rank=3, alpha=3)]
    told = merge_weights(parts, coefficients, tmp_path / "out")
    assert told == {"rank": 5, "lost": 0.0}
    merged, (first, second) = products(tmp_path / "out"), map(products, parts)
    for name, product in merged.items():
        torch.testing.assert_close(product, coefficients[0] * first[name] + coefficients[1] * second[name])


def test_the_average_of_factors_would_be_another_policy(tmp_path):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    merge_weights(parts, (0.5, 0.5), tmp_path / "out")
    factors = [load_file(part / "adapter_model.safetensors") for part in parts]
    name = next(iter(products(parts[0])))
    b, a = (sum(f[f"{name}{end}"] for f in factors) / 2 for end in ("lora_B.weight", "lora_A.weight"))
    assert (2 * b @ a - products(tmp_path / "out")[name]).norm() > 0.1 * products(tmp_path / "out")[name].norm()


def test_a_merged_adapter_says_what_the_sum_says_when_a_model_runs(tmp_path):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    merge_weights(parts, (0.25, 0.75), tmp_path / "out")
    model = PeftModel.from_pretrained(tiny.make_model(tiny.make_tokenizer()), str(tmp_path / "out"))
    plain = tiny.make_model(tiny.make_tokenizer())
    added = [products(part) for part in parts]
    with torch.no_grad():
        for name in added[0]:
            layer = plain.get_submodule(name.removeprefix("base_model.model.").rstrip("."))
            layer.weight.add_(0.25 * added[0][name] + 0.75 * added[1][name])
    ids = torch.tensor([[3, 20, 21, 5]])
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("settings", [{"target_modules": ["q_proj", "embed_tokens"]}, {"trainable_token_indices": [5]}])
def test_what_adapters_do_to_embeddings_is_merged_too(tmp_path, settings):
    parts = [adapter(tmp_path / "a", 1, **settings), adapter(tmp_path / "b", 2, rank=4, **settings)]
    merge_weights(parts, (0.25, 0.75), tmp_path / "out")

    def embedded(path):
        model = PeftModel.from_pretrained(tiny.make_model(tiny.make_tokenizer()), str(path))
        return model.get_input_embeddings()(torch.tensor([3, 5, 20])).detach()

    first, second = map(embedded, parts)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(embedded(tmp_path / "out"), 0.25 * first + 0.75 * second, rtol=1e-4, atol=1e-4)


def test_of_a_lower_rank_the_best_one_is_taken_and_what_it_loses_is_said(tmp_path):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    told = merge_weights(parts, (0.5, 0.5), tmp_path / "low", rank=2)
    merge_weights(parts, (0.5, 0.5), tmp_path / "exact")
    lost = []
    for name, exact in products(tmp_path / "exact").items():
        u, s, vh = torch.linalg.svd(exact, full_matrices=False)
        torch.testing.assert_close(products(tmp_path / "low")[name], (u[:, :2] * s[:2]) @ vh[:2], rtol=1e-3, atol=1e-3)
        lost.append(float(s[2:].norm() / s.norm()))
    assert told["rank"] == 2
    assert told["lost"] == pytest.approx(max(lost), rel=1e-3)
    more = merge_weights(parts, (0.5, 0.5), tmp_path / "more", rank=9)
    assert more == {"rank": 9, "lost": 0.0}
    assert all(
        torch.allclose(product, products(tmp_path / "exact")[name], atol=1e-4)
        for name, product in products(tmp_path / "more").items()
    )
    assert {len(t) for k, t in load_file(tmp_path / "more/adapter_model.safetensors").items() if "lora_A" in k} == {9}
    same = merge_weights([parts[0], parts[0]], (0.5, 0.5), tmp_path / "same", rank=2)
    assert same["lost"] < 1e-5


def test_whole_models_are_averaged_and_what_else_lies_there_is_the_first_ones(tmp_path):
    parts = [whole(tmp_path / "a", 1), whole(tmp_path / "b", 2)]
    (parts[0] / "state.json").write_text("{}")
    assert merge_weights(parts, (0.25, 0.75), tmp_path / "out") == {}
    merged, first, second = (load_file(each / "model.safetensors") for each in (tmp_path / "out", *parts))
    assert all(torch.allclose(merged[k], 0.25 * first[k] + 0.75 * second[k], atol=1e-7) for k in merged)
    assert (tmp_path / "out/state.json").exists()
    assert (tmp_path / "out/config.json").exists()


def test_shares_of_one_are_the_policy_itself_to_the_bit(tmp_path):
    parts = [whole(tmp_path / "a", 1), whole(tmp_path / "b", 2)]
    merge_weights(parts, (1.0, 0.0), tmp_path / "out")
    merged, first = (load_file(each / "model.safetensors") for each in (tmp_path / "out", parts[0]))
    assert all(torch.equal(merged[key], first[key]) for key in merged)


def smaller(path):
    """The model, one layer of it cut."""
    shutil.copytree(path, path.with_name("cut"))
    file = path.with_name("cut") / "model.safetensors"
    tensors = load_file(file)
    key = sorted(tensors)[0]
    save_file({**tensors, key: tensors[key][:1].contiguous()}, file)
    return path.with_name("cut")


@pytest.mark.parametrize(
    ("second", "coefficients", "said"),
    [
        (lambda p: whole(p / "b", 2), (0.5, 0.6), "with the sum 1"),
        (lambda p: whole(p / "b", 2), (1.0,), "as many coefficients"),
        (lambda p: adapter(p / "b", 2), (0.5, 0.5), "has no adapter"),
        (lambda p: smaller(p / "a"), (0.5, 0.5), "is of another model"),
        (lambda p: p, (0.5, 0.5), "has the weights none"),
    ],
    ids=["sum", "count", "an adapter", "another size", "no weights"],
)
def test_what_does_not_fit_is_said(tmp_path, second, coefficients, said):
    first = whole(tmp_path / "a", 1)
    with pytest.raises(FateError, match=said):
        merge_weights([first, second(tmp_path)], coefficients, tmp_path / "out")


@pytest.mark.parametrize(
    "special",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"q": 4}},
        {"alpha_pattern": {"q": 4}},
        {"lora_bias": True},
    ],
)
def test_special_adapters_are_told_from_plain_ones(tmp_path, special):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    config = json.loads((parts[1] / "adapter_config.json").read_text())
    (parts[1] / "adapter_config.json").write_text(json.dumps({**config, **special}))
    with pytest.raises(FateError, match=rf"no plain LoRA adapter \(\['{next(iter(special))}'\]\)"):
        merge_weights(parts, (0.5, 0.5), tmp_path / "out")
    with pytest.raises(RecipeError, match=rf"no plain LoRA adapter \(\['{next(iter(special))}'\]\)"):
        values_of(str(parts[1]), base="model")  # which evaluates it


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": "LORA", "r": 0, "lora_alpha": 1}'])
def test_a_config_that_is_none_is_said_and_leaves_nothing_half_written(tmp_path, text):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    (parts[1] / "adapter_config.json").write_text(text)
    done = call("soup", *parts, "-o", tmp_path / "out")
    assert isinstance(done.exception, FateError)
    assert "adapter_config.json" in str(done.exception)
    with pytest.raises(RecipeError, match=r"adapter_config\.json"):
        values_of(str(parts[1]), base="model")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ what a merge says


def soup(**args):
    return plugins.load("merge", "soup", args).coefficients(3, lambda _: pytest.fail("nothing to ask"), None)


def test_a_soup_has_the_shares_that_it_is_given():
    assert soup() == [pytest.approx([1 / 3] * 3)]
    assert soup(weights=[2, 1, 1]) == [[0.5, 0.25, 0.25]]
    assert soup(weights=[1, 1]) == [[0.5, 0.5, 0.0]]
    with pytest.raises(FateError, match="4 weights for 3 policies"):
        soup(weights=[1, 1, 1, 1])
    with pytest.raises(FateError, match="sum to 0"):
        soup(weights=[1, -1])


@pytest.mark.parametrize("rows", [[], [[1.0]], [[0.5, 0.6]], [["a", "b"]], [[np.nan, 1.0]], None, [0.5, 0.5]])
def test_a_choice_that_is_none_is_the_plugins_fault(rows):
    with pytest.raises(PluginError, match=r"the merge odd: .* rows of 2 numbers, each with the sum 1"):
        checked(rows, 2, "odd")


def test_means_leave_out_where_an_objective_does_not_apply():
    cards = [{"security": Score(1.0), "utility": Score.not_applicable()}, {"security": Score(0.0)}]
    found = means([(None, ScoreCard(card)) for card in cards], ["security", "utility"])
    assert found[0] == 0.5
    assert np.isnan(found[1])


# ------------------------------------------------------------------------------------------------ rounds


class Deadly(ScriptedLearner):
    deadly = False

    def load(self, path):
        if self.deadly and path.endswith("merged"):
            raise Killed
        super().load(path)


def run_in(path, merge, deadly=False, rounds=2, **changes):
    def made(suites, *_):
        one = Deadly(suites, gain=0.1)
        one.deadly = deadly
        return one

    recipe, run = make_recipe({**RUN, "rounds": rounds, "merge": merge, **changes}), RunDirectory(path)
    run.write_text("recipe.yaml", recipe.dump())
    evolution = assemble(recipe, run, made, components=components_of(recipe))
    evolution()
    return evolution


def skill(path, place):
    return json.loads((path / "rounds" / place / "skill.json").read_text())


def test_a_rounds_policy_is_the_merge_of_what_was_trained_and_what_was_before(tmp_path):
    run_in(tmp_path / "run", {"name": "soup", "args": {"weights": [3, 1]}})
    run = RunReader.open(tmp_path / "run")
    first, trained = skill(run.path, "00/base"), skill(run.path, "01/trained")
    assert skill(run.path, "01/policy") == pytest.approx(0.75 * trained + 0.25 * first)
    told = run.stages(1)["merge"]
    assert (told["policies"], told["coefficients"]) == (2, [0.75, 0.25])
    assert run.stages(2)["merge"]["policies"] == 3, "round 2's, round 1's as it was trained, and the first of all"
    assert skill(run.path, "02/policy") == pytest.approx(0.75 * skill(run.path, "02/trained") + 0.25 * trained)


def test_the_policy_itself_is_the_neutral_merge(tmp_path):
    run_in(tmp_path / "plain", None)
    run_in(tmp_path / "merged", {"name": "soup", "args": {"weights": [1]}})
    for name in ("rollouts", "repairs", "selections", "buffer"):
        plain, merged = ((tmp_path / n / f"rounds/02/{name}.jsonl").read_bytes() for n in ("plain", "merged"))
        assert plain == merged
    assert not (tmp_path / "plain/rounds/01/trained").exists()


def test_killed_in_the_merge_a_run_goes_on_to_the_same_policies(tmp_path):
    merge = {"name": "soup", "args": {"weights": [1, 1]}}
    run_in(tmp_path / "whole", merge)
    with pytest.raises(Killed):
        run_in(tmp_path / "part", merge, deadly=True)
    run_in(tmp_path / "part", merge)
    for place in ("01/trained", "01/policy", "02/policy"):
        assert skill(tmp_path / "whole", place) == skill(tmp_path / "part", place)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["all weights", "adapter"])
def test_a_learner_goes_on_from_what_it_merged(folder, tmp_path, lora):  # noqa: F811
    made = learner(folder, model={"lora": lora, "threads": 1})
    made.save(str(tmp_path / "a"))
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    made.save(str(tmp_path / "b"))
    told = made.merge([str(tmp_path / "a"), str(tmp_path / "b")], [0.5, 0.5], str(tmp_path / "out"))
    made.load(str(tmp_path / "out"))
    assert told.get("rank") == (4 if lora else None)
    if lora:
        a, b, out = (products(tmp_path / each) for each in ("a", "b", "out"))
        kept = {name: (0.5 * a[name] + 0.5 * b[name], product) for name, product in out.items()}
        assert max(float((p - q).norm() / p.norm()) for p, q in kept.values()) <= told["lost"] + 1e-5
    else:
        a, b, out = (load_file(tmp_path / each / "model.safetensors") for each in ("a", "b", "out"))
        assert all(torch.allclose(out[key], (a[key] + b[key]) / 2, atol=1e-6) for key in out)


# ------------------------------------------------------------------------------------------------ the command


def call(*arguments):
    return CliRunner().invoke(app, ["merge", *map(str, arguments)], catch_exceptions=True)


def test_the_command_writes_weights_and_what_was_chosen(tmp_path):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    done = call("soup", *parts, "-o", tmp_path / "out", "--set", "weights=[3, 1]", "--rank", 2, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["merged"][0]["coefficients"] == [0.75, 0.25]
    assert json.loads((tmp_path / "out/merge.json").read_text()) == told
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 2
    shown = call("soup", *parts, "-o", tmp_path / "again")
    assert "0.50" in shown.stdout


@pytest.mark.parametrize("second", ["1", "round-1"])
def test_policies_of_runs_are_named_by_their_round(tmp_path, second):
    run = RunDirectory(tmp_path / "run")
    run.write_text("recipe.yaml", make_recipe(RUN).dump())
    for place, seed in (("00/base", 1), ("01/policy", 2)):
        whole(tmp_path / "run/rounds" / place, seed)
    done = call("soup", f"{run.path}@0", f"{run.path}@{second}", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    places = (tmp_path / "out", run.path / "rounds/00/base", run.path / "rounds/01/policy")
    out, a, b = (load_file(place / "model.safetensors") for place in places)
    assert all(torch.allclose(out[key], (a[key] + b[key]) / 2, atol=1e-7) for key in out)


def of_rank_8(path):
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))


def spoilt(path):
    tensors = load_file(path / "adapter_model.safetensors")
    next(iter(tensors.values()))[0] = np.nan
    save_file(tensors, path / "adapter_model.safetensors")


def halved(path):
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({key: each for key, each in tensors.items() if "lora_A" in key}, path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"), [(of_rank_8, "says r 8"), (spoilt, "holds NaN"), (halved, "no LoRA adapter's")]
)
def test_damaged_adapters_are_not_merged(tmp_path, damage, said):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    for path in parts if damage is halved else parts[1:]:
        damage(path)
    done = call("soup", *parts, "-o", tmp_path / "out")
    assert isinstance(done.exception, FateError)
    assert said in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_is_said_before_a_merge_is_asked(tmp_path, monkeypatch):
    parts = [adapter(tmp_path / "a", 1), adapter(tmp_path / "b", 2)]
    monkeypatch.setattr("fate_trl.plugins.load", lambda *_: None)  # would raise if it were asked
    (tmp_path / "file").write_text("")
    done = call("soup", *parts, "-o", tmp_path / "file/out")
    assert isinstance(done.exception, RecipeError)
    assert "cannot be made: Not a directory" in str(done.exception)


@pytest.mark.parametrize(
    ("policies", "more", "said"),
    [
        (["a", "nowhere"], [], "neither a run directory"),
        (["a", "a@one"], [], "number of a round"),
        (["a", "b"], ["-o", "a"], "is there already"),
        (["a", "b"], ["--set", "weights=[1, 1, 1]"], "3 weights for 2"),
    ],
    ids=["no such place", "no such round", "output exists", "arguments"],
)
def test_what_cannot_be_merged_is_said_before_anything_is_written(tmp_path, monkeypatch, policies, more, said):
    monkeypatch.chdir(tmp_path)
    whole(tmp_path / "a", 1)
    whole(tmp_path / "b", 2)
    done = call("soup", *policies, *(more if "-o" in more else ["-o", "out", *more]))
    assert done.exit_code != 0
    assert said in str(done.exception)
    assert not (tmp_path / "out").exists()
