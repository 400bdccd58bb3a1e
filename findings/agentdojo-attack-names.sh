#!/usr/bin/env bash
# agentdojo 0.1.35: the attack that "knows no model name" refuses pipelines whose name holds no model name.
#
# One would guess that important_instructions_no_model_name, whose text names no model, works for a pipeline of any name. It
# raises ValueError where the pipeline's name contains no key of agentdojo.models.MODEL_NAMES. Names match by substring, so a
# pipeline called "my-local-model" passes: it contains "local".
#
# Seen: "house-7b" is refused, "my-local-model" is taken; the text of the attack is the same whatever the model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q agentdojo==0.1.35
cat > "$folder/show.py" <<'PY'
import agentdojo.attacks
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.attacks.attack_registry import load_attack
from agentdojo.task_suite.load_suites import get_suite


class Pipeline(BasePipelineElement):
    def __init__(self, name):
        self.name = name

    def query(self, *args, **kwargs):
        raise NotImplementedError


suite = get_suite("v1.2.2", "banking")
for name in ("house-7b", "my-local-model"):
    try:
        load_attack("important_instructions_no_model_name", suite, Pipeline(name))
        print(name, "taken")
    except ValueError:
        print(name, "ValueError")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
house-7b ValueError
my-local-model taken
SEEN
echo "as described"
