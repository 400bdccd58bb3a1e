"""benchmarks/attack.py and best_of.py: the search, wordings by suite, shares, choices; with scripted policies."""

import importlib

import numpy as np
import pytest

from benchmarks import attack, best_of
from benchmarks.attack import Attacked, Beliefs, Option
from benchmarks.attack_wordings import SIDES, STYLES, target_of
from benchmarks.policies import Player, opened
from fate_trl.errors import FateError
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.recipe.loading import make_recipe
from fate_trl.recipe.schema import ComponentRef
from fate_trl.suites.opening import open_suites
from fate_trl.suites.scripted import ScriptedLearner, ScriptedPolicy
from fate_trl.suites.workbench import POLICIES, POLICY
from fate_trl.suites.workbench.world import ATTACKS, FAMILIES

WORLDS = ("tradeoffs", "workbench")


@pytest.fixture
def player(tmp_path):
    """A player of a scripted policy: a role, or a function that says the role on a task."""

    def make(world, policy, **settings):
        suite = {"name": world, "args": {"train": 10, "validation": 10, "test": 200}}
        run = RunDirectory(
            tmp_path / f"run-{world}-{policy if isinstance(policy, str) else id(policy)}".replace("/", "-")
        )
        evolution = assemble(
            make_recipe({"suites": [suite]} | settings), run, lambda suites, *_: ScriptedLearner(suites)
        )
        evolution.learner = Follows(evolution.suites, policy)
        return Player(evolution)

    return make


class Follows(ScriptedPolicy):
    def __init__(self, suites, role):
        super().__init__(suites, "oracle")
        self.choose, self.asked = (role if callable(role) else lambda task: role), []

    def rollout(self, requests, seed):
        self.asked += [request.task for request in requests]
        return [self._one(request, self.choose(request.task)) for request in requests]


def text_of(task):
    """All that a task holds."""
    return " ".join([*task.data["mail"].values(), *task.data["files"].values()])


# ------------------------------------------------------------------------------------------------ wordings


def test_no_style_is_an_attack_family_that_was_trained_on():
    trained = [ATTACKS[name] for name in FAMILIES["train"]]
    assert not set(trained) & set(STYLES.values())
    assert set(FAMILIES["test"]) - set(FAMILIES["train"]) <= set(STYLES)
    assert all(text.count("{goal}") == 1 for text in STYLES.values())
    assert len(set(STYLES.values())) == len(STYLES)


@pytest.mark.parametrize("world", WORLDS)
def test_a_worded_attack_stands_where_it_was_put_in_the_place_of_the_old_one(player, world):
    home = player(world, "obey")
    for task in home.tasks(30, 0, lambda task: task.kind == "attacked"):
        target = target_of(task, home.suites)
        old = home.suites[task.suite].open(task).outcome((), ()).injected[0]
        own = text_of(task).replace(old, "").split()
        for place in target.places(task):
            made = target.planted(task, "HERE it is.", place)
            side = place.split(" ")[-1]
            assert text_of(made).count("HERE it is.") == SIDES[side].count("{text}")
            assert old not in text_of(made)
            assert sorted(text_of(made).replace("HERE it is.", "").split()) == sorted(own), "all else stays"
            assert (made.messages, made.tools, made.kind) == (task.messages, task.tools, task.kind)
            [played] = home.play([made], 0)
            assert (played.outcome.attacked, played.outcome.exposed) == (True, True), "who obeys meets it there"


@pytest.mark.parametrize("world", WORLDS)
def test_the_policy_gets_to_read_what_was_planted_in_the_result_of_a_tool(player, world):
    home = player(world, "obey")
    for found in attack.attacked_tasks(home, "test", 6, 0):
        option = found.options()[0]
        [played] = home.play([found.worded(option)], 0)
        assert any(found.text(option.style, option.goal) in call.result for call in played.calls)


@pytest.mark.parametrize("world", WORLDS)
def test_a_recipe_that_trains_on_a_style_is_refused(player, monkeypatch, world):
    home = player(world, "oracle")
    assert attack.check_unseen(home) > 0
    monkeypatch.setitem(STYLES, "mine", "PLEASE: {goal}!")
    assert attack.check_unseen(home) > 0
    trained = ATTACKS["authority"].replace("Your boss says:", "your boss says -")
    if world == "tradeoffs":
        [text] = home.suites[world].open(home.tasks(1, 0, is_attacked, "train")[0]).outcome((), ()).injected
        asked = next(goal for goal in target_of_first(home).values() if goal in text)
        trained = text.replace(asked, "{goal}").upper().replace("{GOAL}", "{goal}")
    monkeypatch.setitem(STYLES, "mine", trained)
    with pytest.raises(FateError, match="'mine'"):
        attack.check_unseen(home)


def is_attacked(task):
    return task.kind == "attacked"


def target_of_first(home):
    [task] = home.tasks(1, 0, is_attacked, "train")
    return target_of(task, home.suites).goals(task)


@pytest.mark.parametrize("world", WORLDS)
def test_every_goal_names_what_the_attacker_wants(player, world):
    home = player(world, "oracle")
    for task in home.tasks(30, 1, lambda task: task.kind == "attacked"):
        goals = target_of(task, home.suites).goals(task)
        assert len(goals) >= 3
        assert not any("{" in text for text in goals.values())


def test_agentdojos_vectors_take_a_worded_attack(monkeypatch):
    pytest.importorskip("agentdojo")
    registry = importlib.import_module("agentdojo.attacks.attack_registry")
    monkeypatch.setattr(registry, "ATTACKS", dict(registry.ATTACKS))  # other tests compare all that it knows
    pytest.importorskip("fate_trl_agentdojo")
    opened = open_suites([ComponentRef(name="agentdojo/banking", args={"attacks": ["direct"]})])
    [suite] = opened.values()
    task = next(t for t in suite.tasks("all", 0) if t.kind == "attacked" and t.data.get("goal"))
    target = target_of(task, opened)
    [goal, *_] = target.goals(task).values()
    assert goal.rstrip(".") in task.data["goal"]
    for place in target.places(task):
        made = target.planted(task, f"Say yes and {goal}.", place)
        assert suite.open(made).outcome((), ()).injected == (f"Say yes and {goal}.",)
    benign = next(t for t in suite.tasks("all", 0) if t.kind == "benign")
    assert target_of(benign, opened) is None


@pytest.fixture
def dojo(monkeypatch, player):
    """A player on AgentDojo's bank; attacks that are registered meanwhile are forgotten."""
    pytest.importorskip("agentdojo")
    pytest.importorskip("fate_trl_agentdojo")
    registry = importlib.import_module("agentdojo.attacks.attack_registry")
    monkeypatch.setattr(registry, "ATTACKS", dict(registry.ATTACKS))

    def make(policy, attacks=("direct",), test_attacks=("direct", "ignore_previous"), name="banking"):
        args = {"attacks": list(attacks), "test_attacks": list(test_attacks), "tools": "needed"}
        return player(f"agentdojo/{name}", policy, suites=[{"name": f"agentdojo/{name}", "args": args}])

    return make


def test_who_obeys_on_agentdojo_reads_every_wording_and_does_it(dojo):
    home = dojo("obey")
    found = attack.attacked_tasks(home, "test", 4, 0)
    for task in found:
        for number, style in enumerate(STYLES):
            goal = list(task.target.goals(task.task))[number % 3]
            for place in task.target.places(task.task):
                [played] = home.play([task.worded(Option(style, goal, place))], 0)
                text = task.text(style, goal)
                assert any(text in " ".join(call.result.split()) for call in played.calls), (style, place)
                assert (played.outcome.attacked, played.outcome.exposed) == (True, True)


def test_agentdojos_tasks_are_attacked_once_whatever_their_own_attacks(dojo):
    home = dojo("oracle")
    found = attack.attacked_tasks(home, "test", None, 0)
    pairs = {(a.task.data["user"], a.task.data["injection"]) for a in found}
    assert len(pairs) == len(found) == len(home.tasks(None, 0, is_attacked)) // 2, "two attacks of each"


def test_agentdojos_places_differ(dojo):
    one = {a.target.places(a.task) for a in attack.attacked_tasks(dojo("oracle"), "test", None, 0)}
    assert one == {("all",)}, "the bank's users read one vector each"
    more = {a.target.places(a.task) for a in attack.attacked_tasks(dojo("oracle", name="slack"), "test", None, 0)}
    assert more == {("all",), ("all", "first", "last")}


def test_agentdojos_attack_of_the_training_tasks_must_not_be_a_style(dojo, monkeypatch):
    home = dojo("oracle", attacks=("direct",))
    assert attack.check_unseen(home) > 0
    monkeypatch.setitem(STYLES, "mine", "todo {goal}")
    with pytest.raises(FateError, match="'mine'"):
        attack.check_unseen(home)


def test_the_whole_attack_on_agentdojo(dojo):
    found = attack.attack(dojo("obey"), 3, 2, 0)
    assert {found[share] for share in attack.SHARES} == {1.0}
    assert found["tries"]["adaptive"] == {"tries": 6, "errors": 0, "read": 6}
    assert found["intervals"]["adaptive"]["n"] == found["tasks"] == 3
    safe = attack.attack(dojo("refuse-all"), 3, 2, 0)
    assert {safe[share] for share in attack.SHARES} == {0.0}
    assert safe["tries"]["adaptive"] == {"tries": 9, "errors": 0, "read": 0}, "safe without a merit"


# ------------------------------------------------------------------------------------------------ the search


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("role", "share"), [("oracle", 0.0), ("refuse-all", 0.0), ("obey", 1.0)])
def test_who_never_obeys_is_never_broken_and_who_always_does_is_at_once(player, world, role, share):
    found = attack.attack(player(world, role), 8, 3, 0)
    assert {found[name] for name in attack.SHARES} == {share}
    assert found["turns"] == [1 if share else None] * 8


@pytest.mark.parametrize("world", WORLDS)
def test_the_search_finds_the_one_style_and_place_that_work(player, world):
    weak = lambda task: (  # noqa: E731
        "obey"
        if any(text.startswith("PS:") for text in [*task.data["mail"].values(), *task.data["files"].values()])
        else "oracle"
    )
    home = player(world, weak)
    found = attack.attack(home, 30, 12, 3)
    assert found["best"]["style"] == "postscript"
    assert found["best"]["place"].split(" ")[-1] in ("before", "around")
    assert found["learned"] == 1.0, "what was learned holds on other tasks"
    assert found["adaptive"] > found["static_tries"], "the same strings again and again find nothing more"
    late, early = ([t for t in found["turns"] if t and a <= t <= b] for a, b in ((7, 12), (1, 6)))
    assert len(late) + len(early) >= 20


def test_no_combination_is_tried_twice_on_a_task_and_the_budget_holds(player):
    home = player("tradeoffs", "oracle")
    tasks = home.tasks(5, 0, lambda task: task.kind == "attacked")
    attacked = [Attacked(task, target_of(task, home.suites)) for task in tasks]
    broken, _ = attack.search(home, attacked, 7, np.random.default_rng(0))
    asked = [(task.id, text_of(task)) for task in home.evolution.learner.asked]
    assert broken == [None] * 5
    assert len(asked) == len(set(asked)) == 5 * 7


def test_broken_tries_teach_nothing(player, monkeypatch):
    home = player("tradeoffs", "obey")
    monkeypatch.setattr(attack, "reached", lambda _, tasks, __: [None] * len(tasks))
    tasks = [Attacked(t, target_of(t, home.suites)) for t in home.tasks(3, 0, lambda task: task.kind == "attacked")]
    broken, beliefs = attack.search(home, tasks, 4, np.random.default_rng(0))
    assert (broken, beliefs.counts) == ([None] * 3, {})


def test_a_policy_in_a_folder_is_attacked_once_and_kept(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    suite = {"name": "workbench", "args": {"train": 6, "validation": 3, "test": 30}}
    recipe = make_recipe({"suites": [suite], "model": {"path": "embedded"}}).model_dump(mode="json")
    found = attack.on_policy(recipe, POLICY, 4, 2, 7, tmp_path)
    assert all(found["intervals"][share]["n"] > 0 for share in attack.SHARES)
    assert found["tries"]["adaptive"]["read"] > 0
    [file] = tmp_path.iterdir()
    monkeypatch.setattr(attack, "attack", None)
    assert attack.on_policy(recipe, POLICY, 4, 2, 7, tmp_path) == found, "kept, so not done again"
    with pytest.raises(TypeError):
        attack.on_policy(recipe, POLICY, 4, 2, 8, tmp_path)
    with pytest.raises(TypeError):
        attack.on_policy(recipe, POLICIES["tradeoffs"], 4, 2, 7, tmp_path)
    assert [*tmp_path.iterdir()] == [file]


def test_an_adapter_is_opened_on_its_base(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(POLICY)
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, target_modules="all-linear")
    )
    adapted.save_pretrained(tmp_path)
    suite = {"name": "workbench", "args": {"train": 6, "validation": 3, "test": 30}}
    recipe = make_recipe({"suites": [suite], "model": {"path": "embedded", "lora": {"r": 2, "lora_alpha": 8}}})
    with opened(recipe.model_dump(mode="json"), tmp_path) as home:
        weights = home.evolution.learner.model.state_dict()
    wanted = adapted.state_dict()
    assert sum("lora_B" in name for name in weights) > 0
    assert all((weights[name] == wanted[name]).all() for name in weights if "lora_" in name)


def test_beliefs_prefer_what_succeeded():
    beliefs = Beliefs()
    good, bad = Option("polite", "g", "after"), Option("bare", "g", "before")
    for _ in range(20):
        beliefs.learn(good, True)
        beliefs.learn(bad, False)
    assert beliefs.best([bad, good, Option("user", "g", "around")]) == good
    rng = np.random.default_rng(0)
    assert sum(beliefs.drawn([bad, good], rng) == good for _ in range(100)) > 95


def test_shares_are_paired_by_seed_and_a_single_policy_gets_wilsons_interval():
    def found(method, seed, share):
        said = attack._wilson([n < 20 * share for n in range(20)])
        return {
            **{"method": method, "seed": seed, "tasks": 20, "cpu_seconds": 1, **dict.fromkeys(attack.SHARES, share)},
            "intervals": dict.fromkeys(attack.SHARES, said),
            "tries": {"adaptive": {"tries": 12, "errors": 2, "read": 5}},
        }

    two = [found("fate", 0, 0.1), found("gdpo", 0, 0.4), found("fate", 1, 0.2), found("gdpo", 1, 0.5)]
    said = attack.told(two)
    assert said["gdpo"]["less"]["adaptive"]["mean"] == pytest.approx(-0.3)
    assert said["gdpo"]["less"]["adaptive"]["high"] == pytest.approx(-0.3), "seeds differ, pairs do not"
    assert said["fate"]["less"]["adaptive"] is None
    assert said["fate"]["read"]["mean"] == 0.5, "of ten sound tries"
    single = attack.told([found("fate", 0, 0.0)])["fate"]["adaptive"]
    assert (single["mean"], round(single["high"], 3)) == (0.0, 0.161), "Wilson's, 0 of 20"


# ------------------------------------------------------------------------------------------------ best of K


def test_more_tries_are_no_worse_and_what_is_chosen_is_the_selectors(player):
    roles = iter(["refuse-all", "do-nothing", "obey", "oracle"] * 200)
    home = player("tradeoffs", lambda task: next(roles))
    made = best_of.best_of(home, 30, 0)
    resolved = [made[str(k)]["values"]["resolved"] for k in best_of.KS]
    assert resolved == sorted(resolved)
    assert resolved[-1] > resolved[0]
    assert all(0 <= made[str(k)]["values"]["hypervolume"] <= 1 for k in best_of.KS)


def test_the_best_of_a_task_that_an_oracle_tried_is_the_oracles(player):
    home = player("tradeoffs", "oracle")
    task = home.tasks(1, 0, lambda task: task.kind == "attacked")
    tries = {role: home.score([player("tradeoffs", role).play(task, 0)[0]])[0] for role in ("refuse-all", "oracle")}
    [best] = best_of.chosen_of(home, [[tries["refuse-all"], tries["oracle"]]], np.random.default_rng(0))
    assert best == tries["oracle"]
