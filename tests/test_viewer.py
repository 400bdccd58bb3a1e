"""The viewer without a browser: its index, its data files, its server, its export."""

import http.client
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest
import yaml
from case import case
from scripted_run import run as run_recipe
from typer.testing import CliRunner

from fate_trl.cli import app
from fate_trl.errors import FateError
from fate_trl.ledger.layout import round_dir
from fate_trl.ledger.writing import RunDirectory
from fate_trl.loop.assemble import assemble
from fate_trl.recipe.loading import find_recipe, make_recipe
from fate_trl.report import index
from fate_trl.report.reading import Run
from fate_trl.report.viewer import CONTENT_SECURITY_POLICY, SHARD, STATIC, Site, SiteServer, export
from fate_trl.suites.scripted import ROLES, ScriptedLearner
from fate_trl.testing import samples
from fate_trl.testing.hostile import HOSTILE, LARGE, live_html, record
from fate_trl.types import ScoreCard


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rounds of a scripted learner on the workbench."""
    here = tmp_path_factory.mktemp("viewer")
    recipe = yaml.safe_load(find_recipe("quickstart").read_text())
    recipe["suites"] = [{"name": "workbench", "args": {"train": 24, "validation": 9, "test": 12}}]
    recipe["rollout"] |= {"tasks": None}
    (here / "small.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(here / "small.yaml", here / "run")
    return here / "run"


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(index.CACHE))


def cases_of(folder):
    """(round, record) of every trajectory, in the index's order: scripted baselines last."""
    cases = [
        (number, json.loads(line))
        for number in range(3)
        for file in ("rollouts", "repairs")
        if (folder / round_dir(number) / f"{file}.jsonl").exists()
        for line in (folder / round_dir(number) / f"{file}.jsonl").read_text().splitlines()
    ]
    return sorted(cases, key=lambda case: case[1]["trajectory"]["stage"].removeprefix("eval-test-") in ROLES)


def received(body):
    """(name, value) of a data file, read as the page reads it."""
    call = re.fullmatch(rb"fate\.data\.receive\((.*)\);\n", body)
    name, text = json.loads(b"[" + call[1] + b"]")
    return name, json.loads(text)


# ------------------------------------------------------------------------------------------------ the index


def test_every_trajectory_has_a_row_that_says_what_its_record_says(folder):
    built = index.build(Run.open(folder))
    shown, rows, cases = built.shown, built.shown["rows"], cases_of(folder)
    assert len(built.places) == len(cases) > 100
    assert shown["objectives"] == ["security", "utility", "over_refusal", "trajectory_control"]
    for row, (round, found) in enumerate(cases):
        assert index.read(folder, built.places[row]) == found
        task = rows["task"][row]
        trajectory, card = found["trajectory"], ScoreCard.from_dict(found["card"])
        assert (rows["round"][row], shown["stages"][rows["stage"][row]]) == (round, trajectory["stage"])
        assert rows["attempt"][row] == trajectory.get("attempt", 0)
        assert shown["tasks"]["id"][task] == trajectory["task"]["id"]
        assert shown["kinds"][shown["tasks"]["kind"][task]] == trajectory["task"]["kind"]
        failed = [
            name
            for name, column, bar in zip(shown["objectives"], rows["scores"], shown["pass_at"], strict=True)
            if 0 <= column[row] < bar
        ]
        assert set(failed) == set(card.failed)
        causes = [shown["causes"][cause] for cause in rows["causes"][row]]
        assert {cause.partition(":")[0] for cause in causes} == set(card.failed)


def test_failures_know_their_candidates(folder):
    shown = index.build(Run.open(folder)).shown
    files = sorted(folder.glob("rounds/*/selections.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(shown["selections"]) == len(records) > 5
    stages = [shown["stages"][stage] for stage in shown["rows"]["stage"]]
    for found, selection in zip(records, shown["selections"], strict=True):
        assert stages[selection["failure"]] == "collect"
        assert {stages[row] for row in selection["candidates"]} == {"repair"}
        assert selection["chosen"] == found["chosen"]


class Tokens(ScriptedLearner):
    """A scripted learner whose trajectories have tokens."""

    def rollout(self, requests, seed):
        return [samples.with_tokens(t, t.stage, t.attempt) for t in super().rollout(requests, seed)]


@pytest.fixture
def paired(tmp_path):
    """A run with pairs; of the first of them only the last turn of the rejected side has loss."""
    recipe = {
        "suites": [{"name": "workbench", "args": {"train": 12, "validation": 6, "test": 6}}],
        "evaluation": {"baselines": False, "validation": 0},
        "rounds": 1,
        "preference": {},
    }
    assemble(make_recipe(recipe), RunDirectory(tmp_path / "run"), lambda suites, *_: Tokens(suites))()
    file = tmp_path / "run/rounds/01/pairs.jsonl"
    pairs = [json.loads(line) for line in file.read_text().splitlines()]
    mask = pairs[0]["rejected_mask"]
    pairs[0]["rejected_mask"] = [0] * (len(mask) - 3) + mask[-3:]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return tmp_path / "run", pairs


def opened(site, row):
    """What the page gets of a row."""
    _, shard = received(site.read(f"data/shard-{row // SHARD:05d}.js"))
    return shard[row % SHARD]


def test_pairs_know_their_sides_and_which_of_their_messages_have_loss(paired):
    folder, written = paired
    site = Site(folder)
    _, shown = received(site.read("data/index.js"))
    assert len(shown["pairs"]) == len(written) > 2
    for pair, made in zip(shown["pairs"], written, strict=True):
        sides = {side: opened(site, pair[side]) for side in ("chosen", "rejected")}
        stages = {"chosen": "repair", "rejected": "collect"}
        assert {side: found["trajectory"]["stage"] for side, found in sides.items()} == stages
        assert {found["trajectory"]["task"]["id"] for found in sides.values()} == {made["task"]}
        assert pair["gap"] == made["score_gap"]
        for side, found in sides.items():
            said = [i for i, m in enumerate(found["trajectory"]["messages"]) if m["role"] == "assistant"]
            last_alone = made is written[0] and side == "rejected"
            assert pair["steps"][side] == (said[-1:] if last_alone else said)
            assert pair["tokens"][side] == sum(made[f"{side}_mask"]) > 0


def test_pairs_of_records_that_are_gone_are_left_out(paired):
    folder, written = paired
    with open(folder / "rounds/01/pairs.jsonl", "a") as file:
        file.write(json.dumps({**written[0], "failure": 99}) + "\n")
        file.write(json.dumps({**written[0], "rejected_round": 7}) + "\n")
    _, shown = received(Site(folder).read("data/index.js"))
    assert len(shown["pairs"]) == len(written)


def test_scores_that_do_not_apply_or_are_errors_stay_apart(tmp_path):
    trajectory, card = record("x")
    scores = {"security": {"status": "not_applicable"}, "utility": {"status": "error", "reason": "no answer 503"}}
    broken = {"trajectory": trajectory.to_dict(), "card": {"scores": scores | {"mine": {"value": 0.7999999}}}}
    whole = {"trajectory": trajectory.to_dict() | {"attempt": 1}, "card": card.to_dict()}
    rows = [found | {"stage": "collect", "chunk": 0, "of": 2} for found in (broken, whole)]
    RunDirectory(tmp_path).append("rounds/01/rollouts.jsonl", rows)
    shown = index.build(Run.open(tmp_path)).shown
    assert shown["objectives"] == ["security", "utility", "over_refusal", "mine"]
    assert shown["rows"]["scores"] == [[-1, 0], [-2, 0], [-1, 1], [0.7999, -1]]
    assert [shown["errors"][number] for number in shown["rows"]["error"]] == ["no answer 503", ""]
    assert "mine: no reason given" in shown["causes"]


def test_causes_are_counted_without_their_numbers_and_the_rare_ones_are_one(tmp_path):
    def case(number):
        trajectory, card = record("x", attempt=number)
        reason = (
            f"{number} of 7 calls malformed"
            if number < 5
            else f"words of {chr(97 + number % 26)}{chr(97 + number // 26)}"
        )
        scores = {"trajectory_control": {"value": 0.0, "reason": reason}}
        return {"stage": "collect", "chunk": 0, "of": 5 + index.CAUSES} | {
            "trajectory": trajectory.to_dict(),
            "card": card.to_dict() | {"scores": scores},
        }

    RunDirectory(tmp_path).append("rounds/01/rollouts.jsonl", map(case, range(5 + index.CAUSES)))
    shown = index.build(Run.open(tmp_path)).shown
    assert shown["causes"][0] == "trajectory_control: n of n calls malformed"
    assert len(shown["causes"]) == index.CAUSES + 1
    assert shown["causes"][-1] == "other"
    assert shown["rows"]["causes"][:5] == [[0]] * 5


def test_the_index_is_kept_until_the_records_change(folder, monkeypatch):
    first = index.load(Run.open(folder))
    monkeypatch.setattr(index, "build", lambda run: pytest.fail("built again"))
    assert index.load(Run.open(folder)) == first
    monkeypatch.undo()
    file = folder / "rounds/01/rollouts.jsonl"
    extra = json.loads(file.read_text().splitlines()[0]) | {"stage": "late", "chunk": 0, "of": 1}
    extra["trajectory"]["stage"] = "late"
    RunDirectory(folder).append("rounds/01/rollouts.jsonl", [extra])
    assert "late" in index.load(Run.open(folder)).shown["stages"]


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"state": 1}'])
def test_a_damaged_cache_is_built_again(folder, content):
    (folder / index.CACHE).write_text(content)
    assert len(Site(folder)) == len(cases_of(folder))
    assert json.loads((folder / index.CACHE).read_text())["places"]


def test_a_run_that_nobody_may_write_to_can_be_looked_at(folder):
    (folder / index.CACHE).mkdir()  # as good as a folder without the right to write, which tests may run with
    assert len(Site(folder)) == len(cases_of(folder))


def test_a_half_written_line_is_not_there_yet(folder):
    before = len(Site(folder))
    with open(folder / "rounds/02/rollouts.jsonl", "ab") as file:
        file.write(b'{"stage": "eval-test", "chunk"')
    assert len(Site(folder)) == before


def test_a_folder_without_trajectories_is_no_run_to_look_at(tmp_path):
    with pytest.raises(FateError, match="no run directory"):
        Site(tmp_path)
    (tmp_path / "rounds").mkdir()
    with pytest.raises(FateError, match="no trajectories yet"):
        Site(tmp_path)


def opening(folder):
    """(round, stage, objectives that failed) of the trajectory on which the viewer opens."""
    shown = index.build(Run.open(folder)).shown
    rows, row = shown["rows"], shown["opens"]
    bars = zip(shown["objectives"], rows["scores"], shown["pass_at"], strict=True)
    failed = [name for name, column, bar in bars if 0 <= column[row] < bar]
    return rows["round"][row], shown["stages"][rows["stage"][row]], failed


def rescored(folder, round, change):
    """Write a round's rollouts anew, with the scores of each as `change` leaves them."""
    file = folder / round_dir(round) / "rollouts.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for found in records:
        change(found["card"]["scores"])
    file.write_text("".join(json.dumps(found) + "\n" for found in records))


def passing(scores, *failed):
    for name in scores:
        scores[name] = {"status": "ok", "value": float(name not in failed), "reason": "as set"}


@case(
    "runs and reports",
    "a run in the viewer, with failures of every kind in the last policy's test",
    "an empty right pane",
    "it opens on that policy's first trajectory that failed security",
)
def test_it_opens_on_a_security_failure_of_the_last_accepted_policy(folder):
    rescored(folder, 2, lambda scores: passing(scores, "security", "utility"))
    shown = index.build(Run.open(folder)).shown
    place = opening(folder)
    assert place == (2, "eval-test", ["security", "utility"])
    before = range(shown["opens"])
    stages = [shown["stages"][shown["rows"]["stage"][row]] for row in before if shown["rows"]["round"][row] == 2]
    assert "eval-test" not in stages, "the first of them"


@pytest.mark.parametrize("objective", ["utility", "over_refusal", "trajectory_control"])
@case(
    "runs and reports",
    "a run in the viewer whose last policy failed one objective only, once",
    "an empty right pane",
    "it opens on that trajectory",
)
def test_it_opens_on_the_failure_that_there_is(folder, objective):
    rescored(folder, 2, passing)
    file = folder / round_dir(2) / "rollouts.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    place = [number for number, found in enumerate(records) if found["stage"] == "eval-test"][5]
    passing(records[place]["card"]["scores"], objective)
    file.write_text("".join(json.dumps(found) + "\n" for found in records))
    assert opening(folder) == (2, "eval-test", [objective])


@case(
    "runs and reports",
    "a run in the viewer whose last policy passed everything",
    "an empty right pane",
    "it opens on the first trajectory of that policy's test",
)
def test_without_a_failure_it_opens_on_the_first_trajectory(folder):
    rescored(folder, 2, passing)
    assert opening(folder) == (2, "eval-test", [])


@case(
    "runs and reports",
    "a run in the viewer whose last round was rolled back",
    "an empty right pane",
    "it opens on a failure of the round before, and again of the last one once that is accepted",
)
def test_a_round_that_was_rolled_back_is_not_opened_on(folder):
    for number in (1, 2):
        rescored(folder, number, lambda scores: passing(scores, "utility"))
    stages = folder / "rounds/02/stages.jsonl"
    accepted = stages.read_text()
    stages.write_text(accepted.replace('"accepted":true', '"accepted":false'))
    assert index.load(Run.open(folder)).shown["opens"] == index.build(Run.open(folder)).shown["opens"]
    assert opening(folder) == (1, "eval-test", ["utility"])
    stages.write_text(accepted)
    kept = index.load(Run.open(folder)).shown
    assert kept["rows"]["round"][kept["opens"]] == 2, "the cache notices"


@case(
    "runs and reports",
    "a run in the viewer that was stopped before its first test",
    "an empty right pane",
    "it opens on a failure of what there is",
)
def test_a_run_without_a_test_opens_on_any_failure(tmp_path):
    run = RunDirectory(tmp_path)
    for number, failed in enumerate([(), ("utility",), ("security",)]):
        trajectory, card = record("x", number)
        scores = {name: {"status": "ok", "value": float(name not in failed)} for name in ("security", "utility")}
        scored = {"trajectory": trajectory.to_dict(), "card": card.to_dict() | {"scores": scores}}
        run.append("rounds/01/rollouts.jsonl", [{"stage": "collect", "chunk": number, "of": 1} | scored])
    assert index.build(Run.open(tmp_path)).shown["opens"] == 2


@pytest.mark.parametrize(
    ("names", "letters"),
    [
        (["security", "utility", "over_refusal", "trajectory_control"], ["S", "U", "OR", "TC"]),
        (["security", "safety"], ["Se", "Sa"]),
        (["tool_cost", "trajectory_control"], ["ToCo", "TrCo"]),
        (["latency_p95", "latency_p99"], ["LatP95", "LatP99"]),
        (["_", "a"], ["_", "A"]),
    ],
)
@case(
    "runs and reports",
    "the boxes in the viewer's list",
    "a glyph alone, which did not say of which objective",
    "the objective's letters, different for each, with a legend and its name as title and label",
)
def test_every_box_says_which_objective_it_is(names, letters):
    assert index.letters(names) == letters


# ------------------------------------------------------------------------------------------------ the site


def test_shards_hold_the_conversations_and_count_the_tokens(folder):
    site, cases = Site(folder), cases_of(folder)
    shown = [item for name in site.names if name.startswith("data/shard-") for item in received(site.read(name))[1]]
    assert len(shown) == len(cases)
    for item, (_, found) in zip(shown, cases, strict=True):
        assert item["scores"] == found["card"]["scores"]
        assert item["trajectory"]["messages"] == found["trajectory"]["messages"]
        assert "prompt_ids" not in item["trajectory"]


def test_hostile_texts_are_data_and_nothing_else(tmp_path):
    names = [name for name in HOSTILE if name not in LARGE]
    for number, name in enumerate(names):
        RunDirectory(tmp_path).append_chunk("rounds/01/rollouts.jsonl", "collect", number, [record(HOSTILE[name])])
    site = Site(tmp_path)
    for name in site.names:
        body = site.read(name)
        if name.startswith("data/"):
            assert body.isascii()
            assert body.count(b"\n") == 1
    items = [item for name in site.names if "shard" in name for item in received(site.read(name))[1]]
    for name, item in zip(names, items, strict=True):
        assert item["trajectory"]["messages"][-1]["content"] == HOSTILE[name], name
    assert live_html(site.read("index.html").decode()) == []


def test_the_index_of_huge_texts_is_small(tmp_path):
    RunDirectory(tmp_path).append_chunk("rounds/01/rollouts.jsonl", "collect", 0, [record("<b>" * 10**5)])
    shown = index.build(Run.open(tmp_path)).shown
    assert len(shown["tasks"]["request"][0]) <= 160
    assert max(map(len, shown["causes"])) < 200


def test_the_page_holds_to_its_own_policy():
    page = (STATIC / "index.html").read_text()
    assert f'content="{CONTENT_SECURITY_POLICY}"' in page
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", page)
    for file in STATIC.glob("*.js"):
        code = file.read_text()
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
            assert sink not in code, (file.name, sink)
    assert not re.search(r"url\(|@import", (STATIC / "viewer.css").read_text())


def test_an_export_is_the_site(folder, tmp_path):
    site = Site(folder)
    export(site, tmp_path / "out")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "out").as_posix() for path in written} == set(site.names)
    assert all((tmp_path / "out" / name).read_bytes() == site.read(name) for name in site.names)
    with pytest.raises(FateError, match="not empty"):
        export(site, tmp_path / "out")


# ------------------------------------------------------------------------------------------------ the server


@pytest.fixture
def served(folder):
    with SiteServer(Site(folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{server.server_port}"} | headers).items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_every_file_of_the_site_is_served_and_every_answer_is_guarded(served):
    assert served.server_address[0] == "127.0.0.1"
    for name in ["", *served.site.names]:
        answer, body = ask(served, f"/{name}")
        assert answer.status == 200
        assert body == served.site.read(name or "index.html")
    for path, method in (("/", "GET"), ("/nothing", "GET"), ("/", "POST")):
        answer, _ = ask(served, path, method)
        assert answer.headers["Content-Security-Policy"] == f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Content-Type"].partition(";")[0] in ("text/html", "text/plain")


@pytest.mark.parametrize(
    "path",
    [
        "/recipe.yaml", "/manifest.json", "/rounds/01/rollouts.jsonl", "/.viewer.json", "/viewer.py",
        "/../recipe.yaml", "/data/../../recipe.yaml", "/%2e%2e/recipe.yaml", "/..%2frecipe.yaml", "//etc/passwd",
        "/data/", "/data/shard-99999.js", "/data/shard-0.js", "/index.html/", "/Index.html", "/index.html%00",
    ],
)  # fmt: skip
def test_nothing_else_is_served(served, path):
    answer, body = ask(served, path)
    assert (answer.status, body) == (404, b"404 Not Found\n")


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_only_get_is_answered(served, method):
    answer, _ = ask(served, "/", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


def test_a_page_from_elsewhere_cannot_read_the_run(served):
    port = served.server_port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", ""):
        assert ask(served, "/data/index.js", Host=host)[0].status == 403, host  # DNS rebinding
    assert ask(served, "/", Host=f"localhost:{port}")[0].status == 200
    for site in ("cross-site", "same-site"):
        embedded = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "no-cors"}
        assert ask(served, "/data/index.js", **embedded)[0].status == 403
        assert ask(served, "/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate")[0].status == 200
    assert ask(served, "/data/index.js", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="no-cors")[0].status == 200


def test_records_that_changed_under_the_viewer_are_said_to_be_gone(served, folder):
    file = folder / "rounds/00/rollouts.jsonl"
    file.write_bytes(file.read_bytes()[100:])
    assert ask(served, "/data/shard-00000.js")[0].status == 410
    shutil.rmtree(folder / "rounds")
    assert ask(served, "/data/shard-00000.js")[0].status == 410
    assert ask(served, "/data/index.js")[0].status == 200


def test_a_port_that_is_taken_is_a_plain_error(served, folder):
    with pytest.raises(FateError, match="cannot listen on port"):
        SiteServer(Site(folder), served.server_port)
    with pytest.raises(FateError, match="cannot listen on port 70000"):
        SiteServer(Site(folder), 70_000)


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_exports(folder, tmp_path):
    done = CliRunner().invoke(app, ["view", str(folder), "--export", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "index.html").is_file()
    assert f"{len(cases_of(folder))} trajectories" in done.output


def test_the_command_serves_until_it_is_stopped_and_loads_no_torch(folder):
    code = (
        "import sys, webbrowser\n"
        "from fate_trl.cli import main\n"
        "def opened(url):\n"
        "    print('torch' in sys.modules, url)\n"
        "    raise KeyboardInterrupt\n"
        "webbrowser.open = opened\n"
        f"sys.argv = ['fate-trl', 'view', {str(folder)!r}, '--port', '0']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^False http://127\.0\.0\.1:\d+/$", done.stdout, re.MULTILINE), done.stdout


def test_an_export_leaves_the_run_as_it_was(folder, tmp_path):
    (folder / index.CACHE).unlink(missing_ok=True)
    before = sorted(path for path in folder.rglob("*"))
    done = CliRunner().invoke(app, ["view", str(folder), "--export", str(tmp_path / "site")])
    assert done.exit_code == 0, done.output
    assert sorted(path for path in folder.rglob("*")) == before
    assert not (tmp_path / index.CACHE).exists()


def test_a_port_that_there_is_not_is_told_in_sentences(folder):
    with pytest.raises(FateError) as told:
        SiteServer(Site(folder), 99999)
    assert "..." not in str(told.value).replace(". Give", "")
    assert ".." not in str(told.value)


def test_a_finished_stage_that_lost_records_is_told(folder):
    file = folder / "rounds/01/rollouts.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    shown = index.build(Run.open(folder)).shown
    (line,) = shown["missing"]
    assert re.match(r"Round 1, [\w-]+: \d+ of \d+ records are there; what is not whole is left out", line)


# ------------------------------------------------------------------------------------------------ several runs


@pytest.fixture
def second(folder, tmp_path):
    """Another run of the same recipe: without its second round, and with an objective of its own."""
    other = shutil.copytree(folder, tmp_path / "second")
    (other / index.CACHE).unlink(missing_ok=True)
    for name in ("rollouts", "repairs"):
        file = other / f"rounds/01/{name}.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for found in records:
            found["card"]["scores"]["manners"] = {"value": 0.25}
        file.write_text("".join(json.dumps(found) + "\n" for found in records))
    return other


def test_several_runs_stand_side_by_side(folder, second):
    one, other = index.build(Run.open(folder)).shown, index.build(Run.open(second)).shown
    site = Site(folder, second)
    shown = received(site.read("data/index.js"))[1]
    assert shown["runs"] == [folder.name, "second"]
    rows = shown["rows"]
    assert len(rows["task"]) == len(site) == len(one["rows"]["task"]) + len(other["rows"]["task"])
    tries = list(zip(rows["round"], rows["stage"], rows["task"], rows["attempt"], rows["run"], strict=True))
    both = [(a, b) for a, b in itertools.pairwise(tries) if a[:4] == b[:4]]
    assert len(both) == len(one["rows"]["task"]), "each try stands beside its other"
    assert all((a[4], b[4]) == (0, 1) for a, b in both)
    manners = shown["objectives"].index("manners")
    for row, run in enumerate(rows["run"]):
        mine = rows["scores"][manners][row] != index.NOT_APPLICABLE
        assert mine == (run == 1 and rows["round"][row] == 1)


def test_each_row_of_several_runs_opens_its_own_record(folder, second):
    site = Site(folder, second)
    shown = received(site.read("data/index.js"))[1]
    opened = [found for name in site.names if "shard" in name for found in received(site.read(name))[1]]
    for row, found in enumerate(opened):
        task = shown["rows"]["task"][row]
        assert found["trajectory"]["task"]["id"] == shown["tasks"]["id"][task]
        assert found["trajectory"]["stage"] == shown["stages"][shown["rows"]["stage"][row]]
        assert ("manners" in found["scores"]) == (shown["rows"]["run"][row] == 1 and shown["rows"]["round"][row] == 1)
    for selection in shown["selections"]:
        runs = {shown["rows"]["run"][row] for row in (selection["failure"], *selection["candidates"])}
        assert len(runs) == 1
    assert len(shown["selections"]) == 2 * len(index.build(Run.open(folder)).shown["selections"])
    assert shown["rows"]["run"][shown["opens"]] == 1


def test_runs_of_one_name_are_told_apart_and_one_run_is_not_given_twice(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    assert received(Site(folder, other).read("data/index.js"))[1]["runs"] == [str(folder), str(other)]
    done = CliRunner().invoke(app, ["view", str(folder), str(folder), "--export", str(tmp_path / "out")])
    assert "a run is given twice" in str(done.exception)
    done = CliRunner().invoke(app, ["view", str(folder), str(other), "--export", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/data/index.js").exists()
