"""How the page is handled: keys, the focus, files that are dropped, what is said while the list is closed, what is wide."""

import json
import re

import pytest
from browser import CHROMIUM, fill
from playwright.sync_api import Page, expect

from tests.ui.chatting import (
    STORED,
    ask,
    box,
    button,
    conversation,
    expect_answer,
    expect_answering,
    models,
    settings,
)
from tests.ui.fakelitmus import Fake

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
DROP = """([selector, name, bytes]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
    const events = ["dragover", "drop"].map((kind) => new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer }));
    return events.map((event) => !document.querySelector(selector).dispatchEvent(event));
}"""
FULL_STORAGE = """() => {
    const set = Storage.prototype.setItem;
    Storage.prototype.setItem = function (key, value) {
        if (this === localStorage) throw new DOMException("full", "QuotaExceededError");
        set.call(this, key, value);
    };
    window.makeRoom = () => (Storage.prototype.setItem = set, null);
}"""
SHIFTS = """() => new Promise((done) => {
    const seen = new PerformanceObserver((list) => done(list.getEntries().map((entry) => entry.value)));
    seen.observe({ type: "layout-shift", buffered: true });
    setTimeout(() => done([]), 1000);
})"""
PLACEHOLDER_IS_MUTED = """() => {
    const muted = Object.assign(document.createElement("p"), { style: "color: var(--muted)" });
    document.querySelector(".gradio-container").append(muted);
    const fields = [...document.querySelectorAll("#message textarea, #right textarea, .shelf input[type=search]")];
    return fields.map((field) => getComputedStyle(field, "::placeholder").color === getComputedStyle(muted).color);
}"""
WIDE = "$$\\begin{pmatrix}" + " & ".join(f"a_{{{place}}}" for place in range(60)) + "\\end{pmatrix}$$"
TABLE = "\n\n| Property | Solid state | Liquid state | Gas |\n|---|---|---|---|\n| Compressibility | incompressible | practically | yes |\n"


def drop(page: Page, place: str, name: str, data: bytes) -> None:
    assert page.evaluate(DROP, [place, name, list(data)]) == [True, True], "the browser would open the file"


def test_rows_that_were_not_read_are_told_in_the_table_and_in_what_is_saved(loaded: Page, fake: Fake):
    fake.first_wait_s = 0.3
    loaded.get_by_role("tab", name="Score").click()
    expect(loaded.get_by_label("Text to score")).to_be_visible()
    drop(loaded, "#score-text textarea", "essays.csv", b"text\n" + b"A row with words.\n" * 500)
    files = loaded.locator("#score-files")
    expect(files.get_by_text(re.compile(r"Scoring: \d+ of 200 texts done, about \d+ s left\."))).to_be_visible()
    note = "Only the first 200 of 500 rows were read. To score them all, choose the file on the Jobs tab."
    expect(files.get_by_text(note)).to_have_count(1)
    expect(files.get_by_role("row").nth(1)).to_have_text(f"essays.csv{note}")
    files.get_by_role("button", name="Cancel").press("Enter")
    expect(files.locator("input[type=file]")).to_be_focused()
    for name in ("Save CSV", "Save JSONL", "Save report"):
        with loaded.expect_download() as download:
            files.get_by_role("button", name=name).click()
        assert download.value.path().read_text(encoding="utf-8-sig").count(note) == 1
    look, first = files.locator("td.look button").first, files.get_by_role("rowheader").nth(1)
    assert abs(look.bounding_box()["y"] - first.bounding_box()["y"]) < 20, "on a phone it stands beside the name"  # type: ignore[index]
    assert files.locator(".scroll").evaluate("part => part.scrollWidth <= part.clientWidth")
    files.get_by_role("button", name="Remove all").press("Enter")
    expect(files.locator("input[type=file]")).to_be_focused()


def test_keys_score_and_compare_and_the_focus_goes_to_what_takes_their_place(loaded: Page, fake: Fake):
    fake.hold_after = 2
    ask(loaded, "Long?")
    expect_answering(loaded)
    loaded.get_by_role("tab", name="Score").click()
    fill(loaded.get_by_label("Text to score"), "It rained for three days.")
    loaded.keyboard.press("Escape")
    fake.first_wait_s = 0.5
    loaded.get_by_label("Text to score").press("Control+Enter")
    expect(loaded.locator("#result .verdict")).to_be_visible()
    loaded.locator("#score-button").press("Enter")
    expect(loaded.locator("#score-cancel")).to_be_focused()
    expect(loaded.locator("#result .verdict")).to_be_focused()
    loaded.get_by_role("tab", name="Compare").click()
    fill(loaded.get_by_label("Prompt for both"), "Who?")
    loaded.get_by_label("Prompt for both").press("Control+Enter")
    expect(button(loaded, "Stop both")).to_be_enabled()
    button(loaded, "Stop both").press("Enter")
    expect(button(loaded, "Compare")).to_be_focused()
    loaded.get_by_role("tab", name="Chat").click()
    settings(loaded)
    loaded.get_by_role("combobox", name="Preset").click()
    expect(loaded.get_by_role("listbox")).to_be_visible()
    loaded.keyboard.press("Escape")
    expect(loaded.get_by_role("listbox")).to_have_count(0)
    assert loaded.evaluate("litmus.busy()"), "Escape was meant for the list"
    settings(loaded)
    expect(loaded.locator("#live .now")).to_have_attribute("data-still", re.compile(r"\d+ s"))
    box(loaded).press("Escape")
    expect(conversation(loaded)).to_contain_text("You stopped this answer.")
    button(loaded, "Score this answer").press("Enter")
    expect(loaded.locator("#score-button")).to_be_focused()


def test_lists_that_only_lose_the_focus_choose_nothing(several: Page):
    models(several).focus()
    several.keyboard.press("Tab")
    settings(several)
    several.get_by_label("Temperature").fill("0.3")
    several.get_by_role("combobox", name="Preset").focus()
    several.keyboard.press("Tab")
    expect(several.get_by_label("System prompt")).to_be_focused()
    several.get_by_label("Seed").fill("7")  # a question to the server, whose answer comes after that of the lists
    several.wait_for_function("localStorage.getItem('litmus-settings') !== null")
    expect(several.get_by_label("Temperature")).to_have_value("0.3")
    assert several.evaluate(STORED) is None


def test_a_preset_fills_the_fields_whenever_it_is_chosen_and_a_full_browser_keeps_none(loaded: Page):
    settings(loaded)
    temperature, preset = loaded.get_by_label("Temperature"), loaded.get_by_role("combobox", name="Preset")
    for _ in range(2):
        preset.click()
        loaded.get_by_role("option", name="Exact").click()
        expect(temperature).to_have_value("0")
        temperature.fill("0.7")
    preset.press("ArrowUp")
    preset.press("Enter")
    expect(temperature).to_have_value("")
    loaded.evaluate("console.error = () => {}")  # all that Gradio does about it
    loaded.evaluate(FULL_STORAGE)
    for said in ("This browser's storage is full, so the preset is lost when you leave.", "“mine” was saved."):
        fill(loaded.get_by_label("Name of a preset"), "mine")
        button(loaded, "Save preset").click()
        expect(loaded.get_by_text(said)).to_be_visible()
        loaded.evaluate("makeRoom()")


def test_what_the_list_of_conversations_cannot_say_while_it_is_closed_stands_above_the_box(loaded: Page, fake: Fake):
    told = loaded.locator("#told")
    drop(loaded, "#conversation", "notes.md", "Ein Wörterbuch".encode())
    expect(box(loaded)).to_have_value("Ein Wörterbuch")
    expect(loaded.get_by_text("A model may be wrong")).to_be_visible()
    drop(loaded, "#message textarea", "a.pdf", b"%PDF\xff\x00")
    expect(told).to_have_text(re.compile("“a.pdf” is no text in UTF-8. .* the Score tab reads .pdf and .docx, too."))
    drop(loaded, "#bar", "a.txt", b"text")
    loaded.evaluate("litmus.storage.put({ title: 'Another', updated: 1, conversation: { id: 'a', turns: [] } })")
    loaded.evaluate(FULL_STORAGE)
    fake.words = [WIDE, TABLE]
    for press, count in (("Control+Enter", 1), ("Enter", 2)):
        box(loaded).press(press)
        expect_answer(loaded, count)
        fill(box(loaded), "Why?")
        expect(told).to_have_text(re.compile("^This browser's storage is full"))
        expect(told).to_be_visible()
    loaded.evaluate("makeRoom()")
    button(loaded, "Conversations").click()
    loaded.get_by_label("Options of Another").click()
    button(loaded, "Delete").click()
    expect(told).to_be_empty()
    expect(button(loaded, "Ein Wörterbuch")).to_be_visible()
    button(loaded, "Conversations").click()
    assert conversation(loaded).evaluate("log => log.scrollWidth <= log.clientWidth")
    expect(conversation(loaded).locator(".katex-display").first).to_have_attribute("tabindex", "0")
    word = conversation(loaded).get_by_role("cell", name="incompressible").first
    assert word.evaluate("cell => cell.clientHeight < 2.5 * parseFloat(getComputedStyle(cell).lineHeight)"), "words are not broken"


def test_a_wide_window_is_drawn_where_it_stays_and_an_import_says_what_it_left_out(loaded: Page, page_url: str):
    loaded.set_viewport_size({"width": 1440, "height": 900})
    loaded.reload()
    expect(button(loaded, "New conversation")).to_be_visible()
    expect(loaded.get_by_text("storyteller · nf4 · 4,096 tokens")).to_be_visible()
    assert sum(loaded.evaluate(SHIFTS)) < 0.05
    expect(loaded.locator(".empty .lead")).to_have_css("text-align", "center")
    assert set(loaded.evaluate(PLACEHOLDER_IS_MUTED)) == {True}
    good = [{"role": "user", "text": "Who?"}, {"role": "assistant", "text": "Me.", "parent": 0}]
    bad = [[{**good[0], "parent": 0}], [{"text": "Who?"}], [good[0], {**good[0], "parent": 0}], [None]]
    known = [{"title": "t", "conversation": {"id": f"c{place}", "turns": turns, "leaf": 0}} for place, turns in enumerate([good, *bad])]
    text = json.dumps({"format": "litmus-conversations", "version": 1, "conversations": [*known, None]})
    loaded.locator(".shelf input[type=file]").set_input_files({"name": "c.json", "mimeType": "application/json", "buffer": text.encode()})
    expect(loaded.get_by_text("One conversation was added. 5 could not be read and were left out.")).to_be_visible()
    loaded.set_viewport_size({"width": 390, "height": 844})
