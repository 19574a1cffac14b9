"""The score tab in a real browser, against a fake Litmus server: one text, many files, flags. No request leaves the page's origin."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, fill
from playwright.sync_api import Page, Route, expect

from tests.ui.fakelitmus import EXPLANATION, SOURCE, Fake
from tests.ui.window import Window, without_errors
from ui.flags.file import FlagFile

SURE: dict[str, Any] = {
    "threshold": 0.901,
    "p_machine": {"value": 0.97, "interval": [0.9, 1.0]},
    "false_positive_rate": {"target": 0.01, "measured": 0.0045, "interval": [0.002, 0.008], "n": 3749, "tokens": "64-128"},
    "distribution": {"method": "binoculars", "tokens": "64-128", "edges": [0.5, 1.0, 1.5], "human": [10, 90], "machine": [80, 20]},
}
REFUSED = ("Failed to load resource: the server responded with a status of 502",)
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")


@pytest.fixture(scope="module")
def opened(page_url: str, window: Window) -> Iterator[Page]:
    """The score tab, opened once."""
    with window.empty_tab() as page, without_errors(page, page_url, REFUSED):
        page.goto(page_url)
        page.get_by_role("tab", name="Score").click()
        expect(page.get_by_label("Text to score")).to_be_visible()
        yield page


@pytest.fixture
def tab(opened: Page, fake: Fake) -> Page:
    idle = opened.get_by_text("Paste a text and press Score.")
    if not idle.is_visible():  # an answer to Clear that comes late would empty the next text
        opened.locator("#score-clear").click()
        expect(idle).to_be_visible()
        expect(opened.get_by_label("Text to score")).to_have_value("")
    return opened


def score(page: Page, text: str) -> None:
    fill(page.get_by_label("Text to score"), text)
    page.get_by_role("button", name="Score", exact=True).click()


def upload(page: Page, *files: tuple[str, bytes]) -> None:
    page.locator("#score-files input[type=file]").set_input_files(
        [{"name": name, "mimeType": "text/plain", "buffer": data} for name, data in files]
    )


def saved(page: Page, button: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).first.click()
    return Path(download.value.path()).read_text(encoding="utf-8-sig")


def test_a_score_shows_the_verdict_the_numbers_the_picture_and_the_text(tab: Page, fake: Fake):
    fake.score_changes = SURE
    score(tab, "Once upon\na time <img src=http://example.invalid/x.png> {{value}} ${value} lived")
    expect(tab.get_by_role("heading", name="Reads like machine text")).to_be_visible()
    expect(tab.get_by_text("below 0.901", exact=True)).to_be_in_viewport()  # although the result lies below the box
    for words in (EXPLANATION, SOURCE, "97% (95% interval 90% to over 99%)", "below 0.901"):
        expect(tab.get_by_text(words, exact=True)).to_be_visible()
    expect(tab.get_by_text("4.5 of 1,000 human texts are wrongly flagged (measured on 3,749 texts")).to_be_visible()
    picture = tab.get_by_role("img", name=re.compile("about 5 of 100 human texts and about 39 of 100 machine texts", re.IGNORECASE))
    box = picture.bounding_box()
    assert box is not None and box["height"] > 80 and picture.locator("polygon").count() == 2
    sent = fake.requests[0]
    assert (sent["granularity"], sent["top_tokens"], sent["distributions"], "methods" in sent) == ("token", 5, True, False)
    assert "".join(tab.locator(".t").all_inner_texts()).replace("↵", "") == sent["text"]
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_result_says_when_it_is_not_of_what_is_chosen(tab: Page, fake: Fake):
    box, report = tab.get_by_label("Text to score"), tab.locator("#result .report")
    changed = report.get_by_text("This result is of the text before your change. Press Score.")
    score(tab, "One text.")
    expect(report.get_by_role("button", name="Save report")).to_be_visible()
    expect(changed).to_be_hidden()
    tab.get_by_text("Too short", exact=True).click()
    expect(changed).to_be_visible()
    expect(report.get_by_role("button", name="Save report")).to_be_hidden()
    assert report.locator("h2").evaluate("heading => getComputedStyle(heading).opacity") == "0.4"
    fill(box, "One text.")
    expect(changed).to_be_hidden()
    methods = tab.get_by_label("Method")
    methods.click()
    tab.get_by_role("option", name="Log-rank").click()
    expect(report.get_by_text("This result is of another method or model than is chosen now.")).to_be_visible()
    tab.get_by_role("button", name="Score", exact=True).click()
    expect(report.locator(".changed")).to_be_empty()
    expect(report.get_by_role("button", name="Save report")).to_be_visible()
    methods.click()
    tab.get_by_role("option", name="Automatic").click()


def test_without_a_distribution_the_gauge_is_drawn(tab: Page):
    score(tab, "Once upon a time")
    expect(tab.get_by_role("img", name=re.compile("Binoculars score 0.742; lower is more machine-like"))).to_be_visible()


def test_a_token_shows_its_numbers_and_what_was_expected_on_hover_and_by_keyboard(tab: Page, fake: Fake):
    other = [{"text": " upon", "logprob": -0.5}, {"text": "<b>\n", "logprob": -2.0}]
    numbers = {"logprob": -0.5, "rank": 40, "entropy": 2.25}
    tokens = [{"text": word, "start": start, "end": start + len(word), **numbers} for start, word in ((0, "Once"), (4, " upon"), (9, " a"))]
    fake.score_changes = {"tokens": [tokens[0], {**tokens[1], "alternatives": other}, tokens[2]]}
    score(tab, "Once upon a")
    tokens, tip = tab.locator(".t"), tab.get_by_role("tooltip")
    tokens.nth(1).hover()
    expected = "expected here:\n1. “ upon” 60.7 %\n2. “<b>↵” 13.5 %"
    expect(tip).to_have_text(f"“ upon”\nprobability 60.7 %\nrank 40\nentropy 2.250 nats\n{expected}")
    tab.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    tokens.first.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    expect(tokens.nth(2)).to_be_focused()
    expect(tip).to_have_text("“ a”\nprobability 60.7 %\nrank 40\nentropy 2.250 nats")
    tab.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_the_text_is_shown_by_tokens_sentences_or_passages(tab: Page, fake: Fake):
    chance = {"value": 0.9, "interval": [0.8, 1.0]}
    passages = [
        {"start": 0, "end": 9, "tokens": 70, "score": 0.7, "verdict": "machine", "p_machine": chance},
        {"start": 9, "end": 20, "tokens": 80, "score": 1.0, "verdict": "human", "p_machine": {**chance, "value": 0.1}},
    ]
    fake.score_changes = {"passages": passages, "windows": 2}
    score(tab, "It was. It is it is.")
    expect(tab.get_by_role("list", name="Scored passages")).to_be_visible()
    expect(tab.get_by_role("img", name=re.compile("passage 1 with 90%, the mean is 50%"))).to_be_visible()
    expect(tab.locator(".run")).to_be_hidden()
    tab.get_by_role("radio", name="Passages").press("ArrowLeft")
    expect(tab.get_by_role("list", name="Scored sentences")).to_be_visible()
    tab.get_by_role("radio", name="Tokens").check()
    expect(tab.locator(".run")).to_be_visible()
    expect(tab.get_by_role("list", name="Rank")).to_contain_text("beyond the top 1,000: surprising")


def test_a_text_with_invisible_characters_is_whole_and_shows_them(tab: Page, fake: Fake):
    text = "O\u200bnce upon \u200da \U0001f468\u200d\U0001f469\u200d\U0001f467 time. It rained."
    fake.score_changes = {"normalisations": {"zero_width": 4}, "warnings": [{"code": "short", "message": "only 7 tokens could be scored"}]}
    score(tab, text)
    expect(tab.get_by_text("4 zero-width characters left out")).to_be_visible()
    expect(tab.get_by_text("Only 7 tokens could be scored.")).to_be_visible()
    assert "".join(tab.locator(".tokens .t").all_text_contents()) == text
    expect(tab.locator(".tokens .unseen")).to_have_count(4)
    assert tab.locator(".tokens .unseen").first.evaluate("mark => mark.getBoundingClientRect().width") > 0


def test_the_tooltip_shows_the_scored_text_if_it_differs(tab: Page, fake: Fake):
    fake.score_changes = {"tokens": [{"text": "scope", "start": 0, "end": 5, "logprob": -0.5, "rank": 40, "entropy": 2.25}]}
    score(tab, "\u0455\u0441\u043e\u0440\u0435")
    tab.locator(".t").first.hover()
    expect(tab.get_by_role("tooltip")).to_contain_text("scored as “scope”")


def test_without_a_calibration_the_page_says_why(tab: Page, fake: Fake):
    fake.calibration = {"source": None, "reason": "no calibration comes with this model"}
    fake.score_changes = {"verdict": "uncalibrated"}
    score(tab, "Once upon a time")
    expect(tab.get_by_role("heading", name="Cannot tell")).to_be_visible()
    expect(tab.get_by_text("none: no calibration comes with this model")).to_be_visible()


def test_a_long_text_asks_for_no_alternatives_and_responds_to_keys(tab: Page, fake: Fake):
    score(tab, "word " * 4999 + "end")
    expect(tab.locator(".t")).to_have_count(5000)
    assert "top_tokens" not in fake.requests[0]
    tab.locator(".t").first.focus()
    taken_s = []
    for key, word in (("End", "“ end”"), ("Home", "“word”"), ("End", "“ end”"), ("Home", "“word”")):
        begin_s = time.monotonic()
        tab.keyboard.press(key)
        expect(tab.get_by_role("tooltip")).to_contain_text(word)
        taken_s.append(time.monotonic() - begin_s)
    assert min(taken_s) < 1.5


def test_a_slow_score_counts_the_seconds_and_can_be_cancelled(tab: Page, fake: Fake):
    fake.first_wait_s = 300
    score(tab, "one two three")
    expect(tab.get_by_role("status").filter(has_text=re.compile(r"Scoring 3 words, [1-9]\d* s so far\."))).to_be_visible()
    expect(tab.get_by_role("button", name="Score", exact=True)).to_be_hidden()
    tab.locator("button:visible", has_text="Cancel").click()
    expect(tab.get_by_text("Cancelled. Press Score to start again.")).to_be_visible()
    expect(tab.get_by_label("Text to score")).to_have_value("one two three")
    expect(tab.get_by_role("button", name="Score", exact=True)).to_be_visible()


def test_a_blank_text_and_a_refusal_say_what_to_do_next(tab: Page, fake: Fake):
    score(tab, "  ")
    expect(tab.get_by_role("alert")).to_contain_text("There is no text to score yet. Paste at least a few sentences")
    assert fake.requests == []
    fake.refusal = (429, "The queue is full.")
    score(tab, "A text.")
    expect(tab.get_by_role("alert")).to_have_text("The queue is full. Try again in 7 s. Your text is still in the box.")


def test_methods_come_from_the_server_and_files_use_the_chosen_one(tab: Page, fake: Fake):
    tab.get_by_role("combobox", name="Method").click()
    tab.get_by_role("option", name="Log-rank").click()
    score(tab, "Once upon a time")
    expect(tab.get_by_role("heading", name="Reads like machine text")).to_be_visible()
    assert fake.requests[0]["methods"] == ["log_rank"]
    expect(tab.locator("#score-choice [data-method=log_rank]")).to_have_count(1)
    upload(tab, ("a.txt", b"a file"))
    expect(tab.get_by_role("cell", name="Reads like machine text")).to_be_visible()
    assert (fake.requests[1]["texts"], fake.requests[1]["methods"]) == (["a file"], ["log_rank"])
    tab.get_by_role("button", name="Remove all").click()
    tab.get_by_role("combobox", name="Method").click()
    tab.get_by_role("option", name="Automatic").click()


def test_a_wrong_verdict_is_kept_without_the_text_unless_it_is_ticked(tab: Page, fake: Fake, flags: FlagFile):
    for ticked, said in ((False, "This was kept, without the text."), (True, "This and the text were kept.")):
        score(tab, "I wrote this.")
        tab.get_by_text("This verdict is wrong").click()
        tab.get_by_role("radio", name="a person").check()
        tab.get_by_label("How do you know?").fill("It is mine")
        if ticked:
            tab.get_by_label("Keep the text, too.").check()
        tab.get_by_role("button", name="Send").click()
        expect(tab.get_by_text(said)).to_be_visible()
        tab.locator("#score-clear").click()
        expect(tab.get_by_text("This verdict is wrong")).to_have_count(0)
        expect(tab.get_by_label("Text to score")).to_have_value("")
    without, with_text = (json.loads(line) for line in flags.path.read_text().splitlines())
    assert (without["label"], without["verdict"], without["reason"]) == ("human", "Reads like machine text", "It is mine")
    assert "text" not in without and with_text["text"] == "I wrote this." and without["hash"] == with_text["hash"]


def test_many_files_fill_a_table_that_sorts_exports_and_names_its_errors(tab: Page, fake: Fake):
    fake.score_changes = SURE
    upload(tab, ("b.txt", b"secret words here."), ("=a.csv", b"text\nsecret one\n\nsecret two\n"), ("empty.txt", b""), ("old.doc", b"x"))
    rows = tab.locator("#score-files tbody tr")
    expect(rows).to_have_count(6 - 1)
    expect(tab.locator("#score-files .badge")).to_have_count(3)
    expect(rows.filter(has_text="empty.txt")).to_contain_text("This file is empty. Choose another, or paste the text.")
    expect(rows.filter(has_text="old.doc")).to_contain_text("Save it as .docx")
    tab.locator("#score-files [data-key=name]").click()
    expect(tab.get_by_role("columnheader", name=re.compile("^Text"))).to_have_attribute("aria-sort", "ascending")
    assert rows.first.locator("th").inner_text().startswith("=a.csv, line 2")
    table = saved(tab, "Save CSV")
    assert table.splitlines()[0].startswith("name,hash,verdict,probability") and '"\'=a.csv, line 2"' in table and ",0.97," in table
    lines = [json.loads(line) for line in saved(tab, "Save JSONL").splitlines()]
    assert [line["error"] is None for line in lines] == [True, True, True, False, False]
    report = tab.locator("#score-files").get_by_role("button", name="Save report")
    with tab.expect_download() as download:
        report.click()
    page = Path(download.value.path()).read_text()
    assert "b.txt: Reads like machine text" in page and lines[2]["hash"] in page and "not a proof" in page
    assert not any("secret" in text for text in (table, json.dumps(lines), page)) and "<script" not in page
    tab.get_by_role("button", name="Look at b.txt").click()
    expect(tab.get_by_label("Text to score")).to_have_value("secret words here.")
    expect(tab.get_by_role("heading", name="Reads like machine text")).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    tab.get_by_role("button", name="Remove all").click()
    expect(rows).to_have_count(0)


def test_a_file_that_is_too_large_is_not_sent(tab: Page):
    sent: list[str] = []
    tab.on("request", lambda request: sent.append(request.url))
    upload(tab, ("large.txt", b"x" * 2_000_001), ("small.txt", b"text"))
    rows = tab.locator("#score-files tbody tr")
    expect(rows.nth(1)).to_contain_text("Reads like machine text")
    expect(rows.first).to_contain_text("This file has 2.1 MB; a file may have 2 MB. Split it, or upload a part of it.")
    assert sum(url.endswith("/documents") for url in sent) == 1
    widths = [part.evaluate("part => getComputedStyle(part).borderWidth") for part in (rows.first, rows.first.locator("th"))]
    assert widths == ["0px", "0px"]
    tab.get_by_role("button", name="Remove all").click()


def test_files_that_come_while_others_are_read_and_failed_ones_wait_for_their_turn(tab: Page):
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    tab.route("**/documents", lambda route: route.fulfill(status=502, json={"detail": "The page's server does not answer."}))
    upload(tab, ("a.txt", b"one"), ("b.txt", b"two"))
    rows, working = tab.locator("#score-files tbody tr"), tab.locator("#score-files .working [role=status]")
    expect(rows).to_have_text([re.compile(f"^{name}.txtThe page's server does not answer") for name in "ab"])
    tab.unroute("**/documents")
    tab.route("**/documents", hold, times=1)
    upload(tab, ("c.txt", b"three"))
    expect(working).to_have_text("Reading c.txt, file 1 of 1.")
    tab.get_by_role("button", name="Try failed ones again").click()
    upload(tab, ("d.txt", b"four"))
    held.pop().continue_()
    for name in "abcd":
        expect(rows.filter(has_text=re.compile(f"^{name}.txtReads like machine text"))).to_have_count(1)
    tab.route("**/documents", hold, times=1)
    upload(tab, ("e.txt", b"five"), ("f.txt", b"six"))
    expect(working).to_have_text("Reading e.txt, file 1 of 2.")
    tab.locator("#score-files [data-do=cancel]").click()
    expect(rows.filter(has_text="Cancelled.")).to_have_text([re.compile("^e.txt"), re.compile("^f.txt")])
    tab.get_by_role("button", name="Try failed ones again").click()
    expect(rows.filter(has_text="Reads like machine text")).to_have_count(6)
    tab.get_by_role("button", name="Remove all").click()


def test_failed_texts_are_tried_again_and_a_run_can_be_cancelled(tab: Page, fake: Fake):
    fake.refusal = (503, "The model is loading.")
    upload(tab, ("a.txt", b"one"))
    row = tab.locator("#score-files tbody tr").first
    expect(row).to_contain_text("The model is loading.")
    fake.refusal = None
    tab.get_by_role("button", name="Try failed ones again").click()
    expect(row).to_contain_text("Reads like machine text")
    fake.first_wait_s = 300
    upload(tab, ("b.txt", b"two"))
    expect(tab.get_by_text("Scoring: 1 of 2 texts done.")).to_be_visible()
    tab.locator("#score-files [data-do=cancel]").click()
    expect(tab.locator("#score-files tbody tr").nth(1)).to_contain_text("Cancelled.")
    tab.get_by_role("button", name="Remove all").click()
