"""The hostile texts themselves, and that records, terminal and recipes stand them."""

import html
import json

import pytest

from fate_trl.record import dumps
from fate_trl.testing import hostile
from fate_trl.testing.hostile import HOSTILE, HTML, live_html, live_terminal, record
from fate_trl.types import ScoreCard, Trajectory

NAMES = sorted(HOSTILE)


def test_there_are_at_least_fifty_and_each_is_another():
    assert len(HOSTILE) >= 50
    assert len(set(HOSTILE.values())) == len(HOSTILE)
    groups = (hostile.TERMINAL, hostile.MARKUP, hostile.HTML, hostile.UNICODE, hostile.RECORDS, hostile.PATHS)
    assert sum(map(len, groups)) + len(hostile.LARGE) == len(HOSTILE)  # no group hides another's name


@pytest.mark.parametrize("name", NAMES)
def test_a_record_of_it_is_ascii_on_one_line_and_comes_back_as_it_was(name):
    trajectory, card = record(HOSTILE[name])
    for thing, kind in ((trajectory, Trajectory), (card, ScoreCard)):
        line = dumps(thing)
        assert line.isascii()
        assert line.isprintable()
        assert kind.from_dict(json.loads(line)) == thing


def test_the_detectors_see_what_is_live_and_nothing_else():
    for name, text in hostile.TERMINAL.items():
        assert live_terminal(text), name
    assert live_terminal("plain\ttext, é, 你好\n") == ""
    live = [name for name, text in HTML.items() if live_html(f"<p>{text}</p>") or live_html(f'<p x="{text}"></p>')]
    passive = {"end of an attribute, single", "script in JSON", "line separators", "template literal", "entities"}
    assert set(HTML) - set(live) == passive | {"javascript URL"}
    for text in HOSTILE.values():
        assert live_html(f'<p title="{html.escape(text)}">{html.escape(text)}</p>') == []
