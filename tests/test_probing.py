"""Environment classes tried out without rows: twelve that are as they should be, and one for each thing that is not."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from case import case
from typer.testing import CliRunner

from fate_trl.cli import app
from fate_trl.suites.arguments import draw, draw_arguments, texts_in
from fate_trl.suites.environment import load_environment, schema_of, tools_of
from fate_trl.suites.probing import probe

SECTION = "own environments"
CLASSES = Path(__file__).parent / "data" / "environments"
GOOD = {  # what may be noted of it, by tool: no more
    "word_game.py:WordGame": {"guess": "raises ValueError"},
    "browser.py:Browser": {},
    "database.py:Database": {"query": "raises OperationalError"},
    "diary.py:Diary": {"add": "raises ValueError", "free": "raises ValueError"},
    "shell.py:Shell": {"cat": "raises FileNotFoundError"},
    "shop.py:Shop": {"buy": "raises ValueError"},
    "maze.py:Maze": {},
    "web.py:Web": {"fetch": "raises LookupError"},
    "notes.py:Notes": {},
    "bank.py:Bank": {"pay": "raises ValueError"},
    "thermostat.py:Thermostat": {},
    "orders.py:Orders": {"cancel": "raises ValueError"},
}
BAD = {  # level, where, what it says
    "Hanging": ("defect", "Hanging.wait", "takes over 3 s with {"),
    "HangingAsync": ("defect", "HangingAsync.wait", "takes over 3 s; TRL has no limit"),
    "HangingReset": ("defect", "HangingReset.reset", "takes over 3 s"),
    "Silent": ("note", "Silent.note", "returns nothing: the model reads 'None'"),
    "Lists": ("note", "Lists.names", 'returns a list: the model reads ["ann", "bob"] here; under TRL itself most'),
    "Dicts": ("note", "Dicts.person", 'returns a dict: the model reads {"name": "ann", "age": 31} here, and Python'),
    "Objects": ("defect", "Objects.thing", "returns no text: the model reads <object object>"),
    "Images": ("defect", "Images.show", "returns an image"),
    "Forgotten": ("defect", "Forgotten.fetch", "it is no `async def`, so TRL does not await"),
    "Shared": ("defect", "Shared", "episodes of a batch see one another: its class holds orders"),
    "CarriedOver": (
        "defect",
        "CarriedOver.reset",
        "leaves something of the last episode, and TRL uses instances again",
    ),
    "HashSeed": ("defect", "HashSeed", "results depend on PYTHONHASHSEED, a set's order: guests with {}"),
    "Random": ("defect", "Random", "the same calls give something else in another run: roll with {}"),
    "RandomReset": ("defect", "RandomReset.reset", "two resets to the same differ in secret, the observation"),
    "Broken": ("defect", "Broken.total", "breaks on arguments that its schema allows: AttributeError"),
    "Refusing": ("note", "Refusing.take", "raises ValueError, and the model is told 'there is no key"),
    "Demanding": ("defect", "Demanding", "TRL makes it without arguments, which raises TypeError"),
    "DemandingReset": ("note", "DemandingReset.reset", "it needs word; give it here with --set word=VALUE"),
    "Strict": ("note", "Strict.reset", "TRL hands it every column of a row, the prompt as well: take **kwargs"),
    "FailingReset": ("defect", "FailingReset.reset", "raises ConnectionError: no server at localhost:1"),
    "Messages": ("defect", "Messages.reset", "returns list; TRL appends a text, or a list of text blocks"),
    "Leaving": ("defect", "Leaving.leave", "raises SystemExit, which ends TRL's training"),
    "Crashing": ("defect", "Crashing.crash", "ends the whole process"),
    "Printing": (),
    "Lying": ("defect", "Lying.get_reward", 'returns "well done", not a number'),
    "Ungenerous": ("note", "Ungenerous.get_reward", "returns -3, outside [0, 1]"),
}


QUICK = {"shop.py:Shop", "web.py:Web", "Hanging", "HashSeed", "Shared", "CarriedOver", "Crashing", "Lists", "Broken"}
"""Tried in every run of the tests; the others take most of a minute."""


def named(name, *more):
    slow = () if name in QUICK else (pytest.mark.slow,)
    return pytest.param(name, marks=(*slow, *more))


@pytest.fixture(scope="module")
def found(request):
    """What is found of every class that is asked for; all at once, since most of the time is the start of processes."""
    here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    names = {item.callspec.params["tried"] for item in here if "tried" in item.callspec.params}
    where = {name: f"{CLASSES}/good/{name}" if name in GOOD else f"{CLASSES}/bad/behaved.py:{name}" for name in names}
    with ThreadPoolExecutor(4) as pool:
        made = {name: pool.submit(probe, reference, seconds=3) for name, reference in where.items()}
        return {name: future.result() for name, future in made.items()}


def test_every_finding_is_of_a_class_that_is_there():
    module = (CLASSES / "bad" / "behaved.py").read_text()
    assert {*re.findall(r"^class (\w+)", module, re.MULTILINE)} == {"_Base", *BAD}
    assert len(list((CLASSES / "good").glob("*.py"))) == len(GOOD) >= 12


@pytest.mark.parametrize("tried", [named(name) for name in GOOD])
def test_nothing_is_wrong_with_a_good_one(tried, found):
    made = found[tried]
    assert made["calls"] >= len(made["tools"]) > 0
    assert [finding for finding in made["findings"] if finding["level"] == "defect"] == []
    noted = {finding["where"].rpartition(".")[2]: finding["what"] for finding in made["findings"]}
    for tool, what in noted.items():
        assert what.startswith(GOOD[tried].get(tool, "nothing may be said of it")), (tool, what)


def tried_out(name, wanted):
    now = f"{wanted[0]}: {wanted[2]}" if wanted else "what it prints harms nothing"
    return named(name, case(SECTION, f"an environment class: {name}", "nothing looks at it without rows", now))


@pytest.mark.parametrize("tried", [tried_out(name, wanted) for name, wanted in BAD.items()])
def test_what_is_wrong_is_found(tried, found):
    findings = [(f["level"], f["where"], f["what"]) for f in found[tried]["findings"]]
    wanted = BAD[tried]
    if not wanted:
        assert findings == []
        return
    level, where, what = wanted
    assert any((one[0], one[1]) == (level, where) and what in one[2] for one in findings), findings
    defects = [one for one in findings if one[0] == "defect"]
    assert len(defects) == (level == "defect"), "one cause, one finding"


def test_a_file_that_hangs_when_it_is_imported_does_not_hang_the_check():
    (finding,) = probe(f"{CLASSES}/bad/hangs.py:Never", seconds=0.5)["findings"]
    assert finding["level"] == "defect"
    assert finding["what"] == "its file takes over 3 s to be imported"


def test_tools_that_trl_refuses_are_all_named(tmp_path):
    code = (CLASSES / "bad" / "described.py").read_text()
    (tmp_path / "own.py").write_text(f"{code}\n\nclass Own(Undocumented):\n    def b(self, x) -> str:\n        ...\n")
    made = probe(f"{tmp_path}/own.py:Own", seconds=3)
    assert [tool["name"] for tool in made["tools"] if "refused" in tool] == ["b", "look"]
    assert [f["where"] for f in made["findings"] if "TRL refuses it: it has no docstring" in f["what"]] == [
        "Own.b",
        "Own.look",
    ]


# ------------------------------------------------------------------------------------------------ the command


def check(*words):
    done = CliRunner().invoke(app, ["suites", "check", *map(str, words)])
    return done.exit_code, done.stdout


def test_the_command_lists_tools_and_their_schemas():
    status, out = check(f"{CLASSES}/good/maze.py:Maze")
    assert status == 0
    assert "Maze: 1 tool, " in out
    assert "  move(direction: Literal['north', 'south', 'west', 'east'])" in out
    assert "nothing found" in out
    status, out = check(f"{CLASSES}/good/thermostat.py:Thermostat", "--json", "--set", "mode=cool")
    made = json.loads(out)
    prototype = tools_of(load_environment(f"{CLASSES}/good/thermostat.py:Thermostat")[1])["set"]
    assert made["tools"][0]["schema"] == schema_of(prototype, "")["function"]
    assert made["findings"] == []


def test_a_defect_ends_with_status_1_and_arguments_of_reset_can_be_given():
    status, out = check(f"{CLASSES}/bad/behaved.py:Broken")
    assert status == 1
    assert "defect: Broken.total: breaks on arguments that its schema allows: AttributeError" in out
    status, out = check(f"{CLASSES}/bad/behaved.py:DemandingReset", "--set", "word=crane")
    assert status == 0
    assert "nothing found" in out


def test_a_class_that_is_not_there():
    done = CliRunner().invoke(app, ["suites", "check", "absent.py:Own"])
    assert "there is no file 'absent.py' here" in str(done.exception)
    status, out = check(f"{CLASSES}/good/maze.py:Labyrinth")
    assert status == 1
    assert "has no class 'Labyrinth'; it has Maze" in out


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("name", GOOD)
def test_drawn_arguments_are_what_the_schema_allows(name):
    rng = random.Random(0)
    for tool in tools_of(load_environment(f"{CLASSES}/good/{name}")[1]).values():
        parameters = schema_of(tool, "")["function"]["parameters"]
        drawn = [draw_arguments(parameters, ["known"], rng) for _ in range(60)]
        for arguments in drawn:
            assert set(parameters.get("required", ())) <= set(arguments) <= set(parameters["properties"])
            for key, value in arguments.items():
                assert fits(value, parameters["properties"][key]), (key, value)
        optional = set(parameters["properties"]) - set(parameters.get("required", ()))
        assert all(any(key in arguments for arguments in drawn) for key in optional)
        assert all(any(key not in arguments for arguments in drawn) for key in optional)


TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def fits(value, schema):
    if value is None:
        return bool(schema.get("nullable"))
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    kinds = schema.get("type", list(TYPES))
    if not any(isinstance(value, TYPES[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, dict):
        return all(fits(item, schema.get("additionalProperties", {})) for item in value.values())
    if isinstance(value, list) and "prefixItems" in schema:
        return len(value) == len(schema["prefixItems"]) and all(map(fits, value, schema["prefixItems"]))
    return not isinstance(value, list) or all(fits(item, schema.get("items", {})) for item in value)


def test_the_same_seed_draws_the_same():
    schema = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}}
    one, other = ([draw(schema, ["x"], random.Random(seed)) for seed in range(50)] for _ in range(2))
    assert one == other
    assert len({json.dumps(value) for value in one}) > 10


def test_texts_that_mean_something_are_found_in_the_state():
    assert texts_in({"orders": {"17": ["paid", 3, ""]}, "x": "y" * 100}) == ["orders", "x", "17", "paid"]


def test_what_is_wrong_with_a_reference_names_no_suite(tmp_path):
    """An environment is checked without any rows, so the suite of rows has no part in it."""
    (tmp_path / "mine.py").write_text("class Desk:\n    pass\n")
    for reference in ("gone.py:Desk", f"{tmp_path}/mine.py:Table", f"{tmp_path}/mine.py:Desk"):
        done = CliRunner().invoke(app, ["suites", "check", reference])
        assert done.exit_code
        assert "jsonl" not in str(done.exception) + done.output
