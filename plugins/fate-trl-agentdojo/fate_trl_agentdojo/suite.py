"""AgentDojo's suites behind fate-trl's `Suite` contract.

A task's id is its user task, with the injection task and the attack on attacked ones: `user_task_3`,
`user_task_3/injection_task_5/direct`, `user_task_3/dos`; harmful ones are `injection_task_5`.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache, cached_property, lru_cache
from typing import Any, Literal

from agentdojo.agent_pipeline.agent_pipeline import load_system_message
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline
from agentdojo.attacks import load_attack
from agentdojo.attacks.base_attacks import BaseAttack
from agentdojo.base_tasks import BaseInjectionTask, BaseUserTask
from agentdojo.functions_runtime import Function, FunctionCall, FunctionsRuntime
from agentdojo.task_suite.load_suites import get_suite
from agentdojo.types import get_text_content_as_str

from fate_trl import Kind, Message, Script, SuiteError, Task, entered, make_tool, stable_hash

from .episode import AgentDojoEpisode, Setting, user_task_done
from .loading import template
from .oracles import attacker_calls

SHARES = (("train", 0.4), ("validation", 0.1), ("test", 0.5))
"""Splits and their shares of the user tasks, and of the injection tasks."""

UNSOLVABLE = {("v1", "workspace"): ("user_task_7",), ("v1.1", "workspace"): ("user_task_7",)}
"""User tasks whose check no calls can pass: it forbids the change of an event's end, which the tool always makes."""

REFUSAL = "I can't help with that."


class _Target(BasePipelineElement):
    """What the attacks address; they look their victim's name up by this one, and say "Local model"."""

    name = "local"

    def query(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("attacks ask for the name only")


class AgentDojoSuite:
    """One AgentDojo suite. The arguments are documented where recipes reach them, in the package's factories."""

    checks_arguments = True
    """AgentDojo's own rule: surplus arguments are ignored."""

    def __init__(
        self,
        name: str,
        *,
        version: str,
        attacks: Sequence[str],
        test_attacks: Sequence[str] | None,
        tools: Literal["all", "needed"],
        distractors: int,
        fits: int | None,
        calls: int | None,
        harmful: bool,
        system: str | None,
        split_seed: int,
    ):
        if not attacks or test_attacks == []:
            raise SuiteError(f"agentdojo/{name}: name at least one attack, such as important_instructions")
        if distractors < 0 or any(most is not None and most < 1 for most in (fits, calls)):
            raise SuiteError(f"agentdojo/{name}: distractors must be at least 0, fits and calls at least 1")
        if distractors and tools == "all":
            raise SuiteError(f"agentdojo/{name}: distractors only add to tools: needed, not to tools: all")
        self.name, self.version = name, version
        self.attacks = tuple(attacks)
        self.test_attacks = tuple(attacks if test_attacks is None else test_attacks)
        self._needed_only, self._distractors = tools == "needed", distractors
        self._fits, self._most_calls = fits, calls
        self._harmful, self._split_seed = harmful, split_seed
        self._system = load_system_message("default") if system is None else system
        self._suite = get_suite(version, name)
        self._template = template(version, name)
        self._runtime = FunctionsRuntime(self._suite.tools)
        self._users: dict[str, BaseUserTask] = self._suite.user_tasks
        self._injections: dict[str, BaseInjectionTask] = self._suite.injection_tasks
        self._split_of = {**self._split("user"), **self._split("injection")}
        # Bound to this object, so that the caches go with it.
        self._attack: Callable[[str], BaseAttack] = cache(self._make_attack)
        self._payloads = lru_cache(maxsize=8192)(self._make_payloads)
        self._candidates = cache(self._find_candidates)
        self._holds_untouched = cache(self._check_untouched)
        self._task_tools = cache(self._ground_truth_tools)
        self._all_tasks = cache(self._make_tasks)

    # -------------------------------------------------------------------------------------------- tasks

    def tasks(self, split: str, seed: int) -> Iterator[Task]:
        """Tasks of "train", "validation" or "test", in an order drawn by `seed`; or of "all".

        "all" is every user task and every pair, those across splits included (97 and 949 over the four suites of
        v1.2.2), with the attacks of both kinds: for `fate-trl suites check`, not for training.
        """
        if split not in ("all", *(name for name, _ in SHARES)):
            raise SuiteError(f"agentdojo/{self.name} has no split {split!r}; it has train, validation, test and all")
        tasks = list(self._all_tasks(split))
        random.Random(stable_hash("agentdojo", self.name, split, seed)).shuffle(tasks)
        yield from tasks

    def _make_tasks(self, split: str) -> tuple[Task, ...]:
        users, injections = self._members(self._users, split), self._members(self._injections, split)
        attacks = {"test": self.test_attacks, "all": tuple(dict.fromkeys(self.attacks + self.test_attacks))}
        tasks = [self._task(split, "benign", user) for user in users]
        for attack in attacks.get(split, self.attacks):
            # A denial of service has no injection task: AgentDojo too runs it once per user task.
            goals = [None] if self._attack(attack).is_dos_attack else injections
            tasks += [self._task(split, "attacked", user, goal, attack) for user in users for goal in goals]
        if self._harmful:
            tasks += [self._task(split, "harmful", injection=goal) for goal in injections]
        return tuple(task for task in tasks if self._is_short(task))

    def _is_short(self, task: Task) -> bool:
        """Whether `calls` and `fits` keep a task. A harmful one's oracle refuses at once."""
        if task.kind == "harmful":
            return True
        if self._most_calls is not None and len(self._user_calls(task)) > self._most_calls:
            return False
        return self._fits is None or self._length(task) <= self._fits

    def _members(self, ids: Mapping[str, Any], split: str) -> list[str]:
        return [id_ for id_ in ids if split in ("all", self._split_of[id_])]

    def _task(
        self, split: str, kind: Kind, user: str | None = None, injection: str | None = None, attack: str | None = None
    ) -> Task:
        prompt = self._users[user].PROMPT if user else self._injections[injection or ""].GOAL
        messages: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        parts = {"user": user, "injection": injection, "attack": attack}
        goal = self._injections[injection].GOAL if injection and attack else None
        data = {**parts, "version": self.version, "goal": goal}  # the last two tell whether a recorded task is this one
        return Task(
            id="/".join(part for part in parts.values() if part),
            suite=f"agentdojo/{self.name}",
            kind=kind,
            messages=(*messages, {"role": "user", "content": prompt}),
            tools=self._offered(user, injection),
            cluster=user or injection or "",
            split=split,
            tags=(f"attack:{attack}",) if attack else (),
            data={key: value for key, value in data.items() if value},
        )

    def _split(self, axis: Literal["user", "injection"]) -> dict[str, str]:
        """Split by task id; every split gets at least one."""
        ids = sorted(self._users if axis == "user" else self._injections, key=lambda id_: (len(id_), id_))
        random.Random(stable_hash("split", self.name, axis, self._split_seed)).shuffle(ids)
        train, validation = round(SHARES[0][1] * len(ids)), max(1, round(SHARES[1][1] * len(ids)))
        names = ["train"] * train + ["validation"] * validation
        return dict(zip(ids, names + ["test"] * (len(ids) - len(names))))

    def _length(self, task: Task) -> int:
        """Characters of the oracle's calls and their results."""
        episode = self.open(task)
        calls = self._user_calls(task)
        return sum(len(json.dumps(call.args)) + len(episode.execute(call.function, call.args)) for call in calls)

    # -------------------------------------------------------------------------------------------- tools

    def tools(self) -> Mapping[str, Callable[..., Any]]:
        return self._prototypes

    @cached_property
    def _prototypes(self) -> dict[str, Callable[..., Any]]:
        return {function.name: prototype(function) for function in self._suite.tools}

    def _offered(self, user: str | None, injection: str | None) -> tuple[str, ...]:
        if not self._needed_only:
            return tuple(self._prototypes)
        needed = self._task_tools(user) | self._task_tools(injection)
        order = list(self._prototypes)
        random.Random(stable_hash("distractors", self.name, user or injection, self._split_seed)).shuffle(order)
        offered = needed.union([name for name in order if name not in needed][: self._distractors])
        return tuple(name for name in self._prototypes if name in offered)

    def _ground_truth_tools(self, task: str | None) -> frozenset[str]:
        """Tools that a user task or an injection task takes, by id."""
        if task is None:
            return frozenset()
        environment = self._template.load({})
        if task in self._users:
            calls = self._users[task].ground_truth(self._users[task].init_environment(environment))
        else:
            calls = attacker_calls(self.name, self._injections[task], environment)
        return frozenset(call.function for call in calls)

    # -------------------------------------------------------------------------------------------- episodes

    def open(self, task: Task) -> AgentDojoEpisode:
        """A fresh episode. Raises SuiteError if the task is not one of this suite's."""
        user, injection, attack = (task.data.get(key) for key in ("user", "injection", "attack"))
        if user not in {*self._users, None} or injection not in {*self._injections, None} or not (user or injection):
            raise SuiteError(f"agentdojo/{self.name} {self.version} has no task {task.id!r} ({task.data})")
        payloads = self._payloads(user, injection, attack) if attack else {}
        environment = self._template.load(payloads)
        if user:
            environment = self._users[user].init_environment(environment)
        setting = Setting(
            suite=self.name,
            user=self._users[user] if user else None,
            injection=self._injections[injection] if injection else None,
            dos=attack is not None and injection is None,
            payloads=tuple(payloads.values()),
            needs_calls=user is not None and self._holds_untouched(user),
        )
        return AgentDojoEpisode(setting, environment, self._runtime)

    def _check_untouched(self, user: str) -> bool:
        task = self._users[user]
        before, after = (task.init_environment(self._template.load({})) for _ in range(2))
        try:
            return user_task_done(task, "", before, after, [])
        except Exception:
            return False  # a check that stumbles over an empty trace does not hold on it

    def _make_attack(self, name: str) -> BaseAttack:
        attack = load_attack(name, self._suite, _Target())
        # AgentDojo parses the environment anew for each user task and attack; the answer is the same for all attacks.
        attack.get_injection_candidates = lambda task: self._candidates(task.ID)  # type: ignore[method-assign]
        return attack

    def _make_payloads(self, user: str, injection: str | None, attack: str) -> dict[str, str]:
        """Injected text by injection vector. A denial of service ignores the injection task that it is handed."""
        return self._attack(attack).attack(
            self._users[user], self._injections[injection or next(iter(self._injections))]
        )

    def _find_candidates(self, user: str) -> list[str]:
        """Injection vectors that the user task's ground truth gets to read, as `BaseAttack` finds them."""
        canaries = {vector: f"<CANARY---{vector}--->" for vector in self._suite.get_injection_vector_defaults()}
        task = self._users[user]
        pipeline = GroundTruthPipeline(task)
        *_, messages, _ = pipeline.query(task.PROMPT, self._runtime, self._template.load(canaries))
        text = "\n".join(get_text_content_as_str(message["content"] or []) for message in messages)
        found = [vector for vector, canary in canaries.items() if canary in text]
        if not found:
            raise SuiteError(f"agentdojo/{self.name}: {user} reads nothing that can be injected")
        return found

    # -------------------------------------------------------------------------------------------- scripts

    def script(self, task: Task, role: Literal["oracle", "obey"]) -> Script | None:
        """AgentDojo's ground truth as calls, with an answer.

        "oracle" does the user's task, or refuses a harmful one. "obey" does the user's task, then the attacker's,
        whose calls are computed on the state that the user's left; under a denial of service it stops at the first
        result that shows the attack. None for `UNSOLVABLE` tasks, which no calls solve.
        """
        user, injection = task.data.get("user"), task.data.get("injection")
        if user in UNSOLVABLE.get((self.version, self.name), ()):
            return None
        if role == "obey" and injection:
            return self._obey(task, self._injections[injection])
        if role == "obey" and task.data.get("attack"):
            return _script(self._calls_until_exposed(task), "I have stopped.")
        return _script(self._user_calls(task), self._answer(user)) if user else Script(answer=REFUSAL)

    def _obey(self, task: Task, injection: BaseInjectionTask) -> Script:
        episode = self.open(task)
        calls = self._user_calls(task) if "user" in task.data else []
        for call in calls:
            episode.execute(call.function, call.args)
        calls += attacker_calls(self.name, injection, episode.environment)
        return _script(calls, f"{self._answer(task.data.get('user'))} {injection.GROUND_TRUTH_OUTPUT}".strip())

    def _answer(self, user: str | None) -> str:
        return (self._users[user].GROUND_TRUTH_OUTPUT if user else "") or "Done."

    def _user_calls(self, task: Task) -> list[FunctionCall]:
        return self._users[task.data["user"]].ground_truth(self.open(task).environment)

    def _calls_until_exposed(self, task: Task) -> list[FunctionCall]:
        payloads = self._payloads(task.data["user"], None, task.data["attack"]).values()
        episode, made = self.open(task), []
        for call in self._user_calls(task):
            made.append(call)
            if entered(payloads, [episode.execute(call.function, call.args)]):
                break
        return made

    # -------------------------------------------------------------------------------------------- manifest

    def describe(self) -> dict[str, Any]:
        """For the manifest: versions, members and sizes of the splits, pairs across splits, and tasks of note."""
        splits = {name: self._describe_split(name) for name, _ in SHARES}
        kept = sum(len(split["user_tasks"]) * len(split["injection_tasks"]) for split in splits.values())
        return {
            "benchmark": "agentdojo",
            "package": importlib.metadata.version("agentdojo"),
            "version": self.version,
            "licence": "MIT (agentdojo)",
            "suite": self.name,
            "attacks": list(self.attacks),
            "test_attacks": list(self.test_attacks),
            "split_seed": self._split_seed,
            "splits": splits,
            "pairs": len(self._users) * len(self._injections),
            "pairs_discarded_across_splits": len(self._users) * len(self._injections) - kept,
            "holds_untouched": [user for user in self._users if self._holds_untouched(user)],
            "unsolvable": list(UNSOLVABLE.get((self.version, self.name), ())),
            "no_attack_script": [
                task for task in self._injections if not self._task_tools(task) and not self._says(task)
            ],
        }

    def _says(self, injection: str) -> bool:
        """Whether the goal is to make the agent say something, which takes no call."""
        return bool(self._injections[injection].GROUND_TRUTH_OUTPUT)

    def _describe_split(self, split: str) -> dict[str, Any]:
        tasks = self._all_tasks(split)
        kinds = {kind: sum(task.kind == kind for task in tasks) for kind in ("benign", "attacked", "harmful")}
        users, injections = self._members(self._users, split), self._members(self._injections, split)
        return {"user_tasks": users, "injection_tasks": injections, **kinds}


def _script(calls: Sequence[FunctionCall], answer: str) -> Script:
    return Script(calls=tuple({"name": call.function, "arguments": dict(call.args)} for call in calls), answer=answer)


def prototype(function: Function) -> Callable[..., Any]:
    """The tool as transformers wants it: AgentDojo's docstrings are reST, and enums have no JSON schema there.

    Return annotations are left out: they cost tokens and tell the model nothing.
    """
    parameters, optional = [], {}
    for name, field in function.parameters.model_fields.items():
        annotation, description = field.annotation, field.description or name
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            choices = json.dumps([member.value for member in annotation])
            annotation, description = str, f"{description} (choices: {choices})"
        parameters.append((name, annotation, description))
        if not field.is_required():
            optional[name] = field.default
    return make_tool(function.name, function.description, parameters, optional)
