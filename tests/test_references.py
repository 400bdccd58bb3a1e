"""The reference that a merge makes: its weights, the KL term and margins to it, resumed runs, a recipe's keys."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_checkpoints import At, Killed
from test_merging import products
from test_preference import PAIRS, RUN, Tokens
from test_stages import folder, learner, oracle_row, requests  # noqa: F401 (a fixture)

from fate_trl import plugins
from fate_trl.errors import LedgerError, PluginError, RecipeError
from fate_trl.ledger.reading import RunReader
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.loop.merging import merge_reference
from fate_trl.preflight.memory import Lengths, estimate
from fate_trl.recipe.components import components_of, plugins_of
from fate_trl.recipe.loading import make_recipe
from fate_trl.train import learner as torch_learner
from fate_trl.train.models import load_model
from fate_trl.train.trainer import PFPOTrainer

torch.set_num_threads(1)

MODELS = pytest.mark.parametrize("lora", [None, {"r": 4, "lora_alpha": 8}], ids=["all weights", "adapter"])
PFPO = {"beta": 0.1, "max_steps": 2, "learning_rate": 1e-2}
DPO = {"max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "use_cpu": True}


class Watched(PFPOTrainer):
    """Keeps what its first loss is computed on, and the reference as it is then."""

    def _compute_loss(self, model, inputs):
        if not hasattr(self, "first"):
            self.first = {name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)}
            Watched.seen = self
        return super()._compute_loss(model, inputs)


def made_of(folder, lora, **changes):  # noqa: F811
    sections = {"model": {"path": str(folder), "lora": lora, "threads": 1}, "pfpo": PFPO, "preference": DPO}
    one = learner(folder, **{**sections, **changes})
    one.trainer = Watched
    return one


def moved(made, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def reference(made, path, merge="soup", earlier=None, **args):
    """The folder of the reference that a merge makes of the learner and of an earlier policy, which is another."""
    run = RunDirectory(path)
    if earlier is None:
        earlier = path / "earlier"
        made.save(str(earlier))
        moved(made, 5)
    chooser = plugins.load("merge", merge, args)
    rng, scores = np.random.default_rng(0), lambda: pytest.fail("nothing to ask")
    return merge_reference(made, chooser, [str(earlier)], scores, rng, run, str(path / "rounds/01/training-pfpo"))


def by_hand(folder, made, path, lora):  # noqa: F811
    """A model without adapters whose weights are the average of the learner's and of the earlier policy's."""
    made.save(str(path / "own"))
    plain, _ = load_model(made.recipe.model.model_copy(update={"lora": None, "path": str(folder)}))
    places = (path / "own", path / "earlier")
    if lora is None:
        first, second = (load_file(place / "model.safetensors") for place in places)
        plain.load_state_dict({name: (first[name] + second[name]) / 2 for name in first}, strict=False)
        plain.tie_weights()
        return plain
    first, second = map(products, places)
    with torch.no_grad():
        for name, added in first.items():
            layer = plain.get_submodule(name.removeprefix("base_model.model.").rstrip("."))
            layer.weight.add_((added + second[name]) / 2)
    return plain


def log_probs(model, ids):
    model.eval()
    with torch.no_grad():
        return model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]


# ------------------------------------------------------------------------------------------------ weights


@MODELS
def test_soup_as_reference_has_the_average_of_the_weights(folder, tmp_path, lora):  # noqa: F811
    made = made_of(folder, lora)
    place, told = reference(made, tmp_path)
    assert (told["policies"], told["coefficients"]) == (2, [0.5, 0.5])
    assert told.get("rank") == (8 if lora else None)
    average = by_hand(folder, made, tmp_path, lora)
    made.pfpo(requests(made, "pfpo"), 3, None, reference=place)
    trainer = Watched.seen
    if lora is None:
        found = trainer.ref_model.state_dict()
        assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in average.state_dict().items())
        return
    base, _ = load_model(made.recipe.model.model_copy(update={"lora": None, "path": str(folder)}))
    saved = products(tmp_path / "rounds/01/training-pfpo/reference")
    for name, added in saved.items():
        layer = name.removeprefix("base_model.model.").rstrip(".")
        wanted = average.get_submodule(layer).weight - base.get_submodule(layer).weight
        torch.testing.assert_close(added, wanted.detach(), rtol=1e-4, atol=1e-5)


def test_the_adapter_that_is_compared_with_has_its_own_rank_and_takes_no_gradient(folder, tmp_path, monkeypatch):  # noqa: F811
    made = made_of(folder, {"r": 4})
    place, _ = reference(made, tmp_path)
    seen = {}

    def looked_at(trainer, *_):
        model = trainer.model
        seen["ranks"] = {name: config.r for name, config in model.peft_config.items()}
        seen["trained"] = {name for name, weights in model.named_parameters() if weights.requires_grad}
        seen["own"] = {n: w.detach().clone() for n, w in model.named_parameters() if ".ref." in n}
        return {"log": []}

    monkeypatch.setattr(made, "_run", looked_at)
    made.pfpo(requests(made, "pfpo"), 3, None, reference=place)
    assert seen["ranks"] == {"default": 4, "ref": 8}
    assert seen["trained"]
    assert all(".default." in name for name in seen["trained"])
    saved = load_file(f"{place}/adapter_model.safetensors")
    assert len(saved) == len(seen["own"])
    assert all(torch.equal(value, saved[name.replace(".ref.", ".")]) for name, value in seen["own"].items())


@MODELS
@pytest.mark.parametrize("stage", ["pfpo", "preference"])
def test_soup_as_reference_of_equal_policies_changes_no_bit(folder, tmp_path, lora, stage):  # noqa: F811
    """As in round 1 without SFT: the stage's start is the policy before round 1."""
    plain, held = made_of(folder, lora), made_of(folder, lora)
    held.save(str(tmp_path / "earlier"))
    place, told = reference(held, tmp_path, earlier=tmp_path / "earlier", weights=[0.3, 0.7])
    assert told["coefficients"] == [0.3, 0.7]
    logs = []
    for made, more in ((plain, {}), (held, {"reference": place})):
        asked = requests(made, "pfpo") if stage == "pfpo" else PAIRS
        log = getattr(made, stage)(asked, 3, None, **more)["log"]
        logs.append([entry["loss"] for entry in log if "loss" in entry])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2
    after, wanted = held.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("stage", ["pfpo", "preference"])
def test_a_stage_begins_at_its_reference_where_tokens_are_trained(folder, stage):  # noqa: F811
    """TRL's copy of an adapter leaves trained rows as they were before any training."""
    words = tiny.make_tokenizer().convert_ids_to_tokens(range(20, 30))
    model = {"path": str(folder), "lora": {"r": 4}, "threads": 1, "train_tokens": words}
    made = moved(made_of(folder, None, model=model), 5)
    asked = requests(made, "pfpo") if stage == "pfpo" else PAIRS
    log = getattr(made, stage)(asked, 3, None)["log"]
    name, value = {"pfpo": ("kl", 0.0), "preference": ("loss", math.log(2))}[stage]
    assert next(entry[name] for entry in log if name in entry) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("asked", "rates"), [({}, {0.0}), ({"disable_dropout": False}, {0.5})])
def test_pfpo_samples_and_trains_without_dropout_and_gives_it_back(folder, asked, rates):  # noqa: F811
    made = made_of(folder, {"r": 4, "lora_dropout": 0.5}, pfpo={**PFPO, **asked})
    seen = set()

    class Looking(PFPOTrainer):
        def _generate(self, prompts):
            seen.update(dropout_rates(self.model))
            return super()._generate(prompts)

    made.trainer = Looking
    made.pfpo(requests(made, "pfpo"), 3, None)
    assert seen == rates
    assert set(dropout_rates(made.model)) == {0.5}


def dropout_rates(model):
    return [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]


# ------------------------------------------------------------------------------------------------ what is held to it


@MODELS
@pytest.mark.parametrize("shared", [False, True], ids=["TRL's way", "shared prefixes"])
def test_soup_as_reference_is_what_the_kl_term_is_to(folder, tmp_path, lora, shared):  # noqa: F811
    made = made_of(folder, lora, pfpo={**PFPO, "max_steps": 1})
    made.recipe = made.recipe.model_copy(update={"share_prefixes": shared})
    place, _ = reference(made, tmp_path)
    average = by_hand(folder, made, tmp_path, lora)
    plain = made_of(folder, lora, pfpo={**PFPO, "max_steps": 1})
    plain.recipe = made.recipe
    plain.load(str(tmp_path / "own"))
    (step,) = (entry for entry in made.pfpo(requests(made, "pfpo"), 3, None, reference=place)["log"] if "kl" in entry)
    first = Watched.seen.first
    ids = torch.cat([first["prompt_ids"], first["completion_ids"]], dim=1)
    padded = torch.cat([first["prompt_mask"], first["completion_mask"]], dim=1)
    mask = first["completion_mask"] * first.get("tool_mask", 1)
    gaps = []
    for row, there, own in zip(ids, padded.bool(), mask.bool(), strict=True):  # each row by itself, without its padding
        kept = row[there][None]
        policy, ref = log_probs(plain.model, kept)[0], log_probs(average, kept)[0]
        length = int(there[first["prompt_ids"].shape[1] :].sum())
        gaps.append((ref - policy)[-length:][own[:length]])
    gap = torch.cat(gaps)
    assert step["kl"] == pytest.approx((gap.exp() - gap - 1).mean().item(), rel=1e-3)
    assert step["kl"] > 1e-4
    plain.pfpo(requests(plain, "pfpo"), 3)
    assert torch.equal(Watched.seen.first["completion_ids"], first["completion_ids"]), "the same draws as without"


@MODELS
@pytest.mark.parametrize("shared", [False, True], ids=["TRL's way", "shared prefixes"])
def test_soup_as_reference_is_what_margins_are_to(folder, tmp_path, lora, shared):  # noqa: F811
    made = made_of(folder, lora, preference={**DPO, "max_steps": 1})
    made.recipe = made.recipe.model_copy(update={"share_prefixes": shared})
    place, _ = reference(made, tmp_path)
    average = by_hand(folder, made, tmp_path, lora)
    wanted = []
    for pair in PAIRS:
        sums = []
        for side in ("chosen", "rejected"):
            ids = torch.tensor([[*pair.prompt_ids, *getattr(pair, f"{side}_ids")]])
            own = torch.tensor(getattr(pair, f"{side}_mask")).bool()
            gained = log_probs(made.model, ids)[0] - log_probs(average, ids)[0]
            sums.append(gained[-len(own) :][own].sum().item())
        wanted.append(0.1 * (sums[0] - sums[1]))
    log = made.preference(PAIRS, 3, None, reference=place)["log"]
    assert log[0]["rewards/margins"] == pytest.approx(np.mean(wanted), rel=1e-3, abs=1e-5)
    assert abs(log[0]["rewards/margins"]) > 1e-4


@MODELS
def test_killed_a_training_goes_on_to_the_same_weights_under_its_reference(folder, tmp_path, monkeypatch, lora):  # noqa: F811
    keys = {**PFPO, "max_steps": 4, "save_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2}
    whole, part, last = (made_of(folder, lora, pfpo=keys) for _ in range(3))
    place, _ = reference(whole, tmp_path)
    whole.save(str(tmp_path / "start"))
    for made in (part, last):
        made.load(str(tmp_path / "start"))
    unbroken = whole.pfpo(requests(whole, "pfpo"), 3, str(tmp_path / "whole"), reference=place)

    def kill():
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch_learner, "_Steps", lambda reporter: At(2, kill))
        with pytest.raises(Killed):
            part.pfpo(requests(part, "pfpo"), 3, str(tmp_path / "part"), reference=place)
    resumed = last.pfpo(requests(last, "pfpo"), 3, str(tmp_path / "part"), reference=place)
    kls = [[entry["kl"] for entry in told["log"] if "kl" in entry] for told in (unbroken, resumed)]
    assert kls[0] == kls[1]
    assert len(kls[0]) == 4
    after, wanted = last.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


@MODELS
def test_a_reference_that_is_not_there_is_said(folder, tmp_path, lora):  # noqa: F811
    made = made_of(folder, lora)
    for verb, asked in (("pfpo", requests(made, "pfpo")), ("preference", PAIRS)):
        with pytest.raises(LedgerError, match="nowhere cannot be loaded"):
            getattr(made, verb)(asked, 3, None, reference=str(tmp_path / "nowhere"))


# ------------------------------------------------------------------------------------------------ rounds


class Held(Tokens):
    """Writes down what it was held to; may be killed in PFPO."""

    deadly = False

    def __init__(self, suites, **more):
        super().__init__(suites, **more)
        self.held, self.merges = [], 0

    def merge(self, folders, coefficients, path, exact=False):
        self.merges += 1
        self.exact = exact
        return super().merge(folders, coefficients, path, exact)

    def preference(self, pairs, seed, scratch=None, reference=None):
        return self.noted("preference", reference)

    def pfpo(self, requests, seed, scratch=None, reference=None):
        if self.deadly:
            raise Killed
        return self.noted("pfpo", reference)

    def noted(self, stage, place):
        skill = None if place is None else json.loads(open(f"{place}/skill.json").read())  # noqa: SIM115
        self.held.append((stage, self.skill, skill))
        return self._train(stage, 1)


def run_in(path, deadly=False, rounds=2, **changes):
    learners = []

    def made(suites, *_):
        learners.append(Held(suites, gain=0.1))
        learners[0].deadly = deadly
        return learners[0]

    recipe, run = make_recipe({**RUN, "rounds": rounds, "evaluation": {"validation": 0}, **changes}), RunDirectory(path)
    run.write_text("recipe.yaml", recipe.dump())
    assemble(recipe, run, made, components=components_of(recipe))()
    return learners[0]


SOUP = {"pfpo": {"beta": 0.04, "reference": "soup"}}


def test_each_round_is_held_to_the_soup_of_its_start_and_of_the_policies_before(tmp_path):
    made = run_in(tmp_path / "run", **SOUP, preference={"reference": {"name": "soup", "args": {"weights": [1, 1]}}})
    run = RunReader.open(tmp_path / "run")
    first, second = (json.loads((run.path / f"rounds/{n}/skill.json").read_text()) for n in ("00/base", "01/policy"))
    starts = [start for _, start, _ in made.held]
    assert [stage for stage, *_ in made.held] == ["preference", "pfpo"] * 2
    policies = [[starts[0], first], [starts[1], first], [starts[2], second], [starts[3], second, first]]
    for (_, _, held), merged in zip(made.held, policies, strict=True):
        assert held == pytest.approx(sum(merged) / len(merged))
    assert run.stages(2)["pfpo"]["reference"]["coefficients"] == pytest.approx([1 / 3] * 3)
    assert run.stages(2)["preference"]["reference"]["policies"] == 3
    assert made.exact
    assert not list((run.path / "rounds").glob("*/training-*")), "the reference goes with the stage's scratch folder"


def test_start_as_reference_is_the_policy_before_round_1_in_every_round(tmp_path):
    made = run_in(tmp_path / "run", pfpo={"beta": 0.04, "reference": "start"})
    (_, _, one), (_, _, two) = made.held
    assert one == two == json.loads((tmp_path / "run/rounds/00/base/skill.json").read_text())
    assert made.merges == 0, "one policy is taken as it is"


def test_killed_in_pfpo_a_run_takes_the_reference_that_was_made(tmp_path):
    whole = run_in(tmp_path / "whole", **SOUP)
    with pytest.raises(Killed):
        run_in(tmp_path / "part", deadly=True, **SOUP)
    assert (tmp_path / "part/rounds/01/training-pfpo/reference/merge.json").is_file()
    part = run_in(tmp_path / "part", **SOUP)
    assert part.held == whole.held
    assert (whole.merges, part.merges) == (2, 1)
    found = [RunReader.open(tmp_path / name).stages(1)["pfpo"]["reference"] for name in ("whole", "part")]
    assert found[0] == found[1]


def test_a_merge_that_evaluates_leaves_the_learner_as_it_was(tmp_path):
    class Asking:
        def coefficients(self, policies, evaluate, rng):
            evaluate([0.0] * (policies - 1) + [1.0])
            return [[1.0 / policies] * policies]

    run, made = RunDirectory(tmp_path), Held({}, skill=0.5)
    made.save(str(tmp_path / "earlier"))
    made.skill = 0.9
    rng, scratch = np.random.default_rng(0), str(tmp_path / "rounds/01/training-pfpo")
    seen = []
    place, told = merge_reference(
        made, Asking(), [str(tmp_path / "earlier")], lambda: seen.append(made.skill) or [0.25], rng, run, scratch
    )
    assert seen == [0.5]
    assert made.skill == 0.9
    assert told["tried"] == [{"coefficients": [0.0, 1.0], "scores": [0.25]}]
    assert json.loads(open(f"{place}/skill.json").read()) == pytest.approx(0.7)  # noqa: SIM115


# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pfpo": {"reference": "soup"}}, r"pfpo\.reference: where pfpo\.beta is 0"),
        ({"pfpo": {"reference": "soup", "beta": 0.0}}, r"set pfpo\.beta above 0"),
        ({"pfpo": {"reference": "soup", "beta": 0}}, r"set pfpo\.beta above 0"),
        ({"preference": {"reference": "soup", "beta": 0}}, r"preference\.beta is 0; it is above 0"),
        ({"preference": {"reference": {"name": "soup", "args": {"weights": []}}}}, "weights"),
    ],
)
def test_a_reference_that_nothing_is_held_to_is_refused(changes, said):
    with pytest.raises((RecipeError, PluginError), match=said):
        make_recipe({"suites": ["workbench"], **changes})


@pytest.mark.parametrize("section", ["preference", "pfpo"])
def test_an_unknown_merge_is_said_with_those_that_there_are(section):
    with pytest.raises((RecipeError, PluginError), match=r"soop.*soup"):
        make_recipe({"suites": ["workbench"], section: {"beta": 0.1, "reference": "soop"}})


def test_a_references_plugin_is_among_those_of_the_recipe():
    pfpo = {"beta": 0.1, "reference": "merging/nesterov"}
    recipe = make_recipe({"suites": ["workbench"], "pfpo": pfpo})
    assert "merging" in plugins_of(recipe)
    assert list(components_of(recipe).references) == ["pfpo"]


@MODELS
def test_memory_is_told_for_the_reference(folder, lora):  # noqa: F811
    """An adapter's may have the rank of all policies together; a full model's is as large as any."""
    from transformers import AutoConfig

    config, found = AutoConfig.from_pretrained(folder), []
    for reference in (None, "soup"):
        model = {"path": str(folder), "lora": lora}
        pfpo = {"beta": 0.1, "reference": reference}
        recipe = make_recipe({"suites": ["workbench"], "model": model, "pfpo": pfpo, "rounds": 3})
        needs = estimate(recipe, config, Lengths(20, 20, 8), gpu=False, device_memory=None)
        found.append(next(need.parts["reference"] for need in needs if need.stage == "pfpo: train"))
    assert found[0] > 0
    assert found[1] == found[0] * (4 if lora else 1)
