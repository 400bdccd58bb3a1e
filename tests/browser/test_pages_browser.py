"""Report and comparison in a real browser: on every screen, in print, by keyboard, whatever texts are in them."""

import pytest
from looking import SCREENS, TEXTS

from fate_trl.ledger.writing import RunDirectory
from fate_trl.report import page, summary
from fate_trl.report.comparison import compare
from fate_trl.report.reading import Run
from fate_trl.testing.hostile import record


@pytest.fixture(scope="module")
def pages(quickstart, synthetic, tmp_path_factory):
    """Addresses: the report of a small run and of a huge one, and a comparison of the small one's policies."""
    folder = tmp_path_factory.mktemp("pages")
    found = compare([f"{quickstart}@base", f"{quickstart}@round-1", str(quickstart)])
    texts = {
        "report": page.report(Run.open(quickstart)),
        "report-large": page.report(Run.open(synthetic)),
        "compare": page.render("compare.html", c=found),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in texts}


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["report", "report-large", "compare"])
def test_it_is_readable_on_every_screen(visit, pages, pictures, axe, name, screen):
    shown = visit(pages[name], screen)
    width, room = shown.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= room, "only tables scroll sideways, by themselves"
    small = "[...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().height < 9).length"
    assert shown.evaluate(small) == 0, "the pictures' text is large enough to be read"
    shown.screenshot(path=pictures / f"{name}-{screen}.png", full_page=True)
    shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert axe(shown) == []


def test_it_can_be_read_by_keyboard(visit, pages):
    shown = visit(pages["report"])
    for _ in range(40):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.parentElement.open")


def test_it_prints_in_ink(visit, pages, pictures):
    shown = visit(pages["report"], "dark")
    shown.emulate_media(media="print", color_scheme="dark")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    shown.pdf(path=pictures / "report.pdf")


def test_hostile_texts_stay_text(visit, scripted_copy, monkeypatch):
    """Every hostile text, in every place of a record that report and comparison show."""
    monkeypatch.setattr(summary, "EXAMPLES", len(TEXTS))
    folder, pages = scripted_copy, scripted_copy.parent
    cases = [record(text, attempt) for attempt, text in enumerate(TEXTS)]
    mended = [(t, type(card)({name: type(s)(1.0) for name, s in card.scores.items()})) for t, card in cases]
    for number, stage, those in ((0, "eval-test", mended), (2, "eval-test", cases), (2, "collect", cases)):
        RunDirectory(folder).append_chunk(f"rounds/{number:02d}/rollouts.jsonl", stage, 99, those)
    names = [f"{folder}@base", str(folder)]
    texts = {"report": page.report(Run.open(folder)), "compare": page.render("compare.html", c=compare(names))}
    for name, text in texts.items():
        (pages / f"{name}.html").write_text(text, encoding="utf-8")
        shown = visit((pages / f"{name}.html").as_uri())
        assert shown.evaluate("document.scripts.length + document.querySelectorAll('iframe, img, form').length") == 0
        assert shown.evaluate("document.styleSheets.length") == 1
