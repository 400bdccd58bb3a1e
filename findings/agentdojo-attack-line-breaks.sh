#!/usr/bin/env bash
# agentdojo 0.1.35: the injection that a model reads is not the text that the attack wrote.
#
# One would guess that `load_and_inject_default_environment` puts a text into the environment as it is. It formats the text into YAML, between
# double quotes, and parses the whole: a line break becomes a space, a blank line becomes a line break, and a backslash with the letter after it
# becomes what YAML means by it. Most of AgentDojo's own attacks have blank lines and so arrive changed. Whoever looks for an attack's text in
# tool results, or compares layouts of attacks, works with a text that no model has read.
#
# Seen: the three texts below; of AgentDojo's sixteen attacks that need no person at a keyboard, four arrive as written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q agentdojo==0.1.35
cat > "$folder/show.py" <<'PY'
import agentdojo.attacks
from agentdojo.agent_pipeline.base_pipeline_element import BasePipelineElement
from agentdojo.attacks.attack_registry import ATTACKS, load_attack
from agentdojo.task_suite.load_suites import get_suite

PLACE = "injection_web_0"  # a page of the slack suite
suite = get_suite("v1.2.2", "slack")


class Pipeline(BasePipelineElement):
    name = "local"

    def query(self, *args, **kwargs):
        raise NotImplementedError


def pages(text):
    return suite.load_and_inject_default_environment({PLACE: text}).web.web_content.values()


for text in ("[one\ntwo]", "[one\n\ntwo]", r"[docs\new]"):
    [read] = [page[page.index("[") : page.index("]") + 1] for page in pages(text) if "[" in page]
    print(f"{text!r} is read as {read!r}")

user, goal = suite.user_tasks["user_task_1"], suite.injection_tasks["injection_task_1"]
kept, changed = [], []
for name in sorted(set(ATTACKS) - {"manual"}):
    text = load_attack(name, suite, Pipeline()).attack(user, goal)[PLACE]
    (kept if any(text in page for page in pages(text)) else changed).append(name)
print("as written:", *kept)
print("changed:", len(changed))
PY
"$folder/venv/bin/python" -W ignore "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
'[one\ntwo]' is read as '[one two]'
'[one\n\ntwo]' is read as '[one\ntwo]'
'[docs\\new]' is read as '[docs\new]'
as written: direct ignore_previous injecagent system_message
changed: 12
SEEN
echo "as described"
