"""What `transformers serve` makes of calls that a model wrote, and what becomes of that here: a real server."""

from types import SimpleNamespace

import pytest
import shop
from case import case

pytest.importorskip("fastapi", reason="transformers serve needs it: pip install 'transformers[serving]'")
pytest.importorskip("uvicorn", reason="transformers serve needs it: pip install 'transformers[serving]'")

import served_transformers

from fate_trl import metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """What makes a policy of the served model."""
    folder = tmp_path_factory.mktemp("model")
    assert served_transformers.memoriser(folder) < 0.01

    with served_transformers.serving(folder) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")

        def made(length, **settings):
            limits = {"temperature": 0, "max_completion_length": length}
            return shop.policy(SimpleNamespace(url=url), None, limits, str(folder), concurrency=1, **settings)

        yield made


@pytest.mark.timeout(900)
@case(
    "served models",
    "`transformers serve` 5.23, eight tasks: calls unclosed, cut off, without a name or arguments, arguments no JSON",
    "four infrastructure errors, exit 2; 15 s of retries for each",
    "what the server hands out is scored, what it answers 500 on is counted apart with both bounds",
)
def test_transformers_serve(policy):
    done = shop.rolled(policy(200), *map(shop.task, range(8)))
    assert [t.cause or t.stop for t in done] == [
        "answer", *["endpoint_repeatable"] * 3, "answer", "endpoint_repeatable", "answer", "answer",
    ]  # fmt: skip
    assert shop.values(done[0])["utility"] == 1
    assert done[4].messages[0]["tool_calls"][0]["function"]["arguments"] == "order 3"
    assert shop.values(done[4])["trajectory_control"] == 0
    row = metrics.rows(shop.scored(*done), round=0, split="test", policy="model", accepted=True)[0]
    assert (row["metrics"]["resolved"]["value"], row["metrics"]["resolved"]["n"]) == (1 / 4, 4)
    assert row["errors"]["as_the_models"]["resolved"] == {"value": 1 / 8, "n": 8}


@pytest.mark.timeout(900)
def test_a_call_that_max_tokens_cuts_costs_no_quarter_of_a_minute(policy):
    """The server answers 500 for it; one pause, that of the default backoff, is all that it costs."""
    made, pauses = policy(12, backoff=1), []
    made._stopped.wait = pauses.append
    [done] = shop.rolled(made, shop.task(0))
    assert done.cause == "endpoint_repeatable"
    assert pauses == [1]
