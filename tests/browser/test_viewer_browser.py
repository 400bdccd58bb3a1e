"""The viewer as people use it: by keyboard, on a desk and a phone, in light and dark, on small and huge runs."""

import re
import shutil
import time

import pytest
from looking import SCREENS, TEXTS, serving

from fate_trl.report.viewer import Site, export

REPAIRED = "#stage=collect&repair=repaired&kind=attacked&objective=security&result=failed"


@pytest.fixture(scope="module")
def small(quickstart):
    with serving(quickstart) as url:
        yield url


@pytest.fixture(scope="module")
def large(synthetic):
    with serving(synthetic) as url:
        yield url


def opened(visit, url, **options):
    page = visit(url, **options)
    page.wait_for_selector(".item")
    return page


def counted(page):
    """(shown, all) as the page says."""
    numbers = [int(text.replace(",", "")) for text in re.findall(r"[\d,]+", page.inner_text("#count"))]
    return numbers[0], numbers[-1]


def until(page, expression, arg=None):
    """Wait for an expression to hold. Playwright's own way evaluates text inside the page, which the page forbids."""
    for _ in range(600):
        if page.evaluate(expression, arg):
            return
        time.sleep(0.05)
    pytest.fail(f"never came true: {expression} {arg}")


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
        page.wait_for_timeout(20)


# ------------------------------------------------------------------------------------------------ keyboard


def test_everything_can_be_done_by_keyboard(visit, small):
    page = opened(visit, small)
    press(page, "?")
    assert page.is_visible("#help")
    press(page, "Escape", "/")
    page.keyboard.type("pay")
    until(page, "document.querySelector('#count').textContent.includes(' of ')")
    shown, total = counted(page)
    assert 0 < shown < total
    press(page, "Enter", "j", "j", "k")
    page.wait_for_selector(".conversation")
    assert "pay" in page.inner_text("#detail h2").lower()
    assert page.get_attribute("#list", "aria-activedescendant") == page.get_attribute(".item[aria-selected=true]", "id")
    press(page, "Enter")
    assert page.evaluate("document.activeElement.id") == "detail"
    folds = page.locator("#detail details.fold").count()
    press(page, "o")
    assert page.locator("#detail details.fold[open]").count() == folds
    press(page, "Escape")
    assert page.is_visible(".empty")
    assert page.evaluate("document.activeElement.id") == "list"
    press(page, "x")
    assert counted(page) == (total, total)


def test_it_opens_on_a_failure_and_says_what_its_boxes_mean(visit, small):
    page = opened(visit, small)
    page.wait_for_selector(".conversation")
    place, opens = page.inner_text("#detail .place"), page.evaluate("fate.data.row(fate.data.index.opens)")
    assert f"round {opens['round']}" in place.lower()
    assert opens["stage"] == "eval-test"
    assert page.locator(".item[aria-selected=true] .pip.failed").count() >= 1
    assert page.inner_text("#legend").split("\n")[0].startswith("S security")
    pip = page.locator(".item[aria-selected=true] .pip").first
    assert pip.inner_text().startswith("S")
    assert pip.get_attribute("aria-label").startswith("security: ")
    press(page, "Escape")
    assert page.is_visible(".empty")


def test_a_phone_opens_on_the_list(visit, small):
    page = opened(visit, small, screen="phone")
    assert page.is_visible(".item")
    assert not page.is_visible("#detail")


def test_every_filter_answers_and_an_address_brings_it_back(visit, small):
    page = opened(visit, small)
    _, total = counted(page)
    filters = {"round": "1", "stage": "collect", "kind": "attacked", "objective": "utility", "result": "failed"}
    before = total
    for name, value in filters.items():
        page.select_option(f"select[name={name}]", value)
        page.wait_for_timeout(150)
        shown, _ = counted(page)
        assert 0 < shown <= before, name
        before = shown
    page.select_option("select[name=cause]", index=1)
    until(page, "location.hash.includes('cause')")
    again = opened(visit, page.url)
    assert counted(again) == counted(page)
    assert again.input_value("select[name=cause]") == page.input_value("select[name=cause]")


def test_failure_and_repair_stand_side_by_side(visit, small):
    page = opened(visit, f"{small}{REPAIRED}")
    press(page, "j")
    page.wait_for_selector(".conversation .fault")
    assert "the attacker's goal was reached" in page.inner_text(".at-fault .fault")
    assert page.locator("mark.injected").count() >= 1
    press(page, "f")
    page.wait_for_selector(".pair")
    assert page.locator(".side").count() == 2
    assert "Chosen repair" in page.inner_text(".side.candidate h3")
    assert page.locator(".plot .try").count() == page.locator(".tries tbody tr").count() == 5
    before = page.inner_text(".side.candidate h3")
    press(page, "ArrowRight")
    until(page, "before => document.querySelector('.side.candidate h3').innerText !== before", before)
    press(page, "1")
    until(page, "document.querySelector('.side.candidate h3').innerText.endsWith('· 1')")
    page.wait_for_timeout(300)
    again = opened(visit, page.url)
    again.wait_for_selector(".pair")
    assert again.inner_text(".side.candidate h3") == page.inner_text(".side.candidate h3")
    page.locator(".plot select").first.select_option(label="over refusal")
    until(page, "document.querySelector('.plot svg').getAttribute('aria-label').includes('over refusal')")
    press(page, "Escape")
    page.wait_for_selector(".pair", state="detached")
    page.go_back()
    page.wait_for_selector(".pair")


def test_a_pair_that_was_learned_from_has_its_turns_with_loss_marked(visit, paired, axe):
    with serving(paired) as url:
        page = opened(visit, f"{url}#stage=collect&repair=repaired")
        assert "pairs learned from" in page.inner_text("#total")
        press(page, "j")
        page.wait_for_selector(".conversation")
        assert page.locator(".learned").count() == 0, "one trajectory by itself is read without it"
        press(page, "p")
        page.wait_for_selector(".pair .learned")
        for side in page.locator(".side").all():
            marked = side.locator(".message.assistant").count()
            assert side.locator(".learned").count() == side.locator(".loss").count() == marked > 0
            assert side.locator(".message.tool.learned, .message.user.learned").count() == 0
        assert "with loss in" in page.inner_text(".side.failure")
        assert "view=learned" in page.url
        again = opened(visit, page.url)
        again.wait_for_selector(".pair .learned")
        assert again.inner_text(".side.candidate") == page.inner_text(".side.candidate")
        assert axe(page) == []
        press(page, "f")
        page.wait_for_selector(".plot")
        press(page, "Escape")
        page.wait_for_selector(".pair", state="detached")


def test_the_list_holds_only_what_is_on_the_screen(visit, large):
    page = opened(visit, large)
    assert counted(page)[1] >= 50_000
    assert page.locator(".item").count() < 60
    page.evaluate("document.querySelector('#list').scrollTop = 1e9")
    until(page, "document.querySelector('.item:last-child').getAttribute('aria-posinset') >= 50000")
    press(page, "j")
    page.wait_for_selector(".conversation")
    page.select_option("select[name=repair]", "repaired")
    page.wait_for_timeout(400)
    press(page, "j", "f")
    page.wait_for_selector(".pair")


def test_an_exported_folder_opens_by_double_click(visit, quickstart, tmp_path):
    export(Site(quickstart), tmp_path / "out")
    page = opened(visit, f"{(tmp_path / 'out/index.html').as_uri()}{REPAIRED}")
    press(page, "j", "f")
    page.wait_for_selector(".pair")
    assert page.locator(".conversation").count() == 2


def test_a_run_that_changed_is_said_to_have_changed(chromium, quickstart, tmp_path):
    export(Site(quickstart), tmp_path / "out")
    for shard in (tmp_path / "out/data").glob("shard-*"):
        shard.unlink()
    page = chromium.new_page()
    page.goto((tmp_path / "out/index.html").as_uri())
    page.wait_for_selector(".item")
    page.keyboard.press("j")
    assert "could not be read" in page.text_content("[role=alert]")
    page.close()


# ------------------------------------------------------------------------------------------------ looks


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("run", ["small", "large"])
def test_pictures(visit, request, pictures, screen, run):
    """Taken for people to look at; here only that nothing hangs over the edge."""
    url = request.getfixturevalue(run)
    page = opened(visit, url, screen=screen)
    views = {"list": lambda: None, "trajectory": lambda: press(page, "j"), "pair": lambda: press(page, "f")}
    page.evaluate("hash => { location.hash = hash }", REPAIRED)
    for name, show in views.items():
        show()
        page.wait_for_selector({"list": ".item", "trajectory": ".conversation", "pair": ".pair"}[name])
        page.wait_for_timeout(200)
        page.screenshot(path=pictures / f"viewer-{run}-{screen}-{name}.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        wide = "(e => e.scrollWidth <= e.clientWidth + 1)(document.querySelector('#detail'))"
        assert page.evaluate(wide), f"{name}: the trajectory is wider than its pane"


# ------------------------------------------------------------------------------------------------ accessibility


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing_serious(visit, small, axe, screen):
    page = opened(visit, f"{small}{REPAIRED}", screen=screen)
    assert axe(page) == []
    press(page, "j")
    page.wait_for_selector(".conversation")
    press(page, "o")
    assert axe(page) == []
    press(page, "f")
    page.wait_for_selector(".pair")
    assert axe(page) == []
    press(page, "?")
    assert axe(page) == []


# ------------------------------------------------------------------------------------------------ hostile texts


@pytest.fixture(scope="module")
def attacked(hostile):
    with serving(hostile) as url:
        yield url


def test_hostile_texts_are_shown_as_they_are_and_do_nothing(visit, attacked):
    """Every text, wherever a record holds it: list, filters, scores, conversation, raw record, side by side."""
    page = opened(visit, f"{attacked}#stage=collect")
    assert counted(page)[0] == len(TEXTS) >= 50
    for text in TEXTS:
        press(page, "j")
        until(page, f"wanted => {SAID} === wanted", formed(text))
        page.evaluate(UNFOLD)
        assert page.locator("#detail :is(script, img, iframe, form, style, base, meta, object, embed, a)").count() == 0
    press(page, "f")
    page.wait_for_selector(".pair")


UNFOLD = """() => {
  for (const fold of document.querySelectorAll('#detail details')) fold.open = true;
  for (const more of document.querySelectorAll('#detail button.more')) more.click();
}"""
SAID = (
    "([...document.querySelectorAll('.conversation .assistant .said')].at(-1)?.textContent ?? '')"
    ".slice(0, 5000).toWellFormed()"
)


def formed(text):
    """The text as JSON, a browser and this test's own wire leave it: half characters are replaced."""
    return text[:5000].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_text_keeps_its_direction_to_itself_and_hides_nothing(visit, attacked):
    page = opened(visit, f"{attacked}#stage=collect&q=001")
    press(page, "j")
    page.wait_for_selector(".said")
    said = page.locator(".conversation .said").last
    assert page.evaluate("e => getComputedStyle(e).unicodeBidi", said.element_handle()) in ("isolate", "plaintext")
    names = [span.get_attribute("data-name") for span in said.locator(".hidden-text").all()]
    assert names == ["U+202E", "U+202C"]


# ------------------------------------------------------------------------------------------------ several runs


@pytest.fixture(scope="module")
def both(quickstart, tmp_path_factory):
    """The quickstart beside a copy of it that lost a record."""
    other = shutil.copytree(quickstart, tmp_path_factory.mktemp("second") / "second")
    file = other / "rounds/01/rollouts.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    with serving(quickstart, other) as url:
        yield url


@pytest.mark.parametrize("screen", SCREENS)
def test_two_runs_stand_side_by_side(visit, both, screen):
    page = opened(visit, both, screen=screen)
    names = [text.strip() for text in page.locator(".item .of").all_inner_texts()[:6]]
    assert set(names) == {"quickstart", "second"}
    assert "records are there; what is not whole is left out" in page.inner_text("#missing")
    page.evaluate("location.hash = '#run=second'")
    until(page, "document.querySelector('#count').textContent.includes(' of ')")
    shown, total = counted(page)
    assert total / 3 < shown < total / 2, "the second run lacks a chunk"
    assert set(page.locator(".item .of").all_inner_texts()) == {"second"}
    page.locator(".item").first.click()
    page.wait_for_selector(".conversation")
    assert "second" in page.inner_text("#detail .place")
    assert "of=second" in page.evaluate("new Promise(done => setTimeout(() => done(location.hash), 400))")


def test_one_run_names_no_run(visit, small):
    page = opened(visit, small)
    assert page.locator(".item .of").count() == 0
    assert page.locator("select[name=run]").count() == 0
    assert page.is_hidden("#missing")
