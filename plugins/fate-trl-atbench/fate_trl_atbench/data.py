"""ATBench's rows and its taxonomy. The data comes from the user's copy or from the hub, never with this package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fate_trl import SuiteError

Release = Literal["ATBench", "ATBench500"]

REPOSITORY = "AI45Research/ATBench"
REVISION = "a4bb691cd6051451a55ecc0f540c8612ecb9399c"
"""The commit that published both releases under these names."""

TAXONOMY: dict[str, tuple[str, ...]] = {
    "risk_source": (
        "malicious_user_instruction_or_jailbreak",
        "direct_prompt_injection",
        "indirect_prompt_injection",
        "unreliable_or_misinformation",
        "tool_description_injection",
        "malicious_tool_execution",
        "corrupted_tool_feedback",
        "inherent_agent_failures",
    ),
    "failure_mode": (
        "unconfirmed_or_over_privileged_action",
        "flawed_planning_or_reasoning",
        "incorrect_tool_parameters",
        "choosing_malicious_tool",
        "tool_misuse_in_specific_context",
        "failure_to_validate_tool_outputs",
        "insecure_interaction_or_execution",
        "procedural_deviation_or_inaction",
        "inefficient_or_wasteful_execution",
        "generation_of_harmful_offensive_content",
        "instruction_for_harmful_illegal_activity",
        "generation_of_malicious_executables",
        "unauthorized_information_disclosure",
        "provide_inaccurate_misleading_or_unverified_information",
    ),
    "real_world_harm": (
        "privacy_and_confidentiality_harm",
        "financial_and_economic_harm",
        "security_and_system_integrity_harm",
        "physical_and_health_harm",
        "psychological_and_emotional_harm",
        "reputational_and_interpersonal_harm",
        "info_ecosystem_and_societal_harm",
        "public_service_and_resource_harm",
        "fairness_equity_and_allocative_harm",
        "functional_and_opportunity_harm",
    ),
}
"""The classes of each dimension, as the rows spell them."""

_ALIASES = {
    "unreliable_or_mis_information": "unreliable_or_misinformation",
    "inherent_agent_or_llm_failures": "inherent_agent_failures",
    "inherent_agent_llm_failures": "inherent_agent_failures",
    "unconfirmed_or_overprivileged_action": "unconfirmed_or_over_privileged_action",
    "insecure_execution_or_interaction": "insecure_interaction_or_execution",
    "generation_of_harmful_or_offensive_content": "generation_of_harmful_offensive_content",
    "instruction_for_harmful_or_illegal_activity": "instruction_for_harmful_illegal_activity",
    "reputation_and_interpersonal_harm": "reputational_and_interpersonal_harm",
}
"""Other spellings that are about: of the papers' tables, and of other releases."""


def canonical(dimension: str, label: str) -> str | None:
    """The class that a label names, however it is spelt ("Financial & Economic Harm"); None if it names none."""
    key = re.sub(r"[^a-z0-9]+", "_", label.lower().replace("&", " and ")).strip("_")
    key = _ALIASES.get(key, key)
    return key if key in TAXONOMY[dimension] else None


class Row(BaseModel):
    """One trajectory with its labels. ATBench500 says `conv_id` and `content` where ATBench says `id` and `contents`;
    ATBench300 and AgentDoG's examples say `harm_type` for `real_world_harm`, and have a `profile`.

    Attributes:
        id: As published; tasks are named by their place in the file as well.
        profile: What the agent was told before it began, its system text and tools, where a release says so.
        tools: The tools that the agent had, as JSON objects.
        steps: The trajectory: messages with a role and "content", or "thought" and "action"; perhaps in rounds.
        label: 1 for unsafe.
        risk_source, failure_mode, real_world_harm: The diagnosis. On a safe row it says what the risk was, if any.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str = Field("", validation_alias=AliasChoices("id", "conv_id"))
    profile: Any = None
    tools: list[Any] = Field(default_factory=list, validation_alias="tool_used")
    steps: list[Any] = Field(min_length=1, validation_alias=AliasChoices("contents", "content"))
    label: Literal[0, 1]
    risk_source: str | None = None
    failure_mode: str | None = None
    real_world_harm: str | None = Field(None, validation_alias=AliasChoices("real_world_harm", "harm_type"))

    def diagnosis(self) -> dict[str, str]:
        """The class in each dimension; a dimension whose label names none is left out."""
        labels = {dimension: canonical(dimension, getattr(self, dimension) or "") for dimension in TAXONOMY}
        return {dimension: label for dimension, label in labels.items() if label}


def load(release: Release, path: str | None) -> list[Row]:
    """The rows of a release, or of a file of the same form.

    Raises:
        SuiteError: The file is missing, cannot be downloaded, or is not of the published form.
    """
    file = Path(path).expanduser() if path else _download(release)
    if not file.is_file():
        raise SuiteError(f"atbench: there is no file {file}. {_where(release)}")
    try:
        rows = TypeAdapter(list[Row]).validate_python(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]  # no input: benchmark data must not end up in a log
        raise SuiteError(f"atbench: {file}: {'.'.join(map(str, first['loc']))}: {first['msg']}. {_FORM}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SuiteError(f"atbench: {file} cannot be read as JSON: {error}. {_FORM}") from None
    if not rows:
        raise SuiteError(f"atbench: {file} holds no rows. {_FORM}")
    return rows


_FORM = (
    "It is a list of rows with id (or conv_id), contents (or content), tool_used, label (0 safe, 1 unsafe), "
    f"{', '.join(TAXONOMY)} (or harm_type), and perhaps a profile."
)


def _where(release: Release) -> str:
    return (
        f"ATBench's data does not come with this package: download {release}/test.json of "
        f"https://huggingface.co/datasets/{REPOSITORY} (Apache-2.0, revision {REVISION[:12]}) and give it as `path`."
    )


def _download(release: Release) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, f"{release}/test.json", repo_type="dataset", revision=REVISION))
    except Exception as error:  # no network, offline mode: the remedy is the same
        reason = str(error).partition("\n")[0]
        raise SuiteError(
            f"atbench: {release} cannot be downloaded ({type(error).__name__}: {reason}). {_where(release)}"
        ) from error
