"""What the browser keeps and draws of a chat: conversations, branches, Markdown; against a fake Litmus server."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import CHROMIUM, flashing, violations
from fastapi import FastAPI
from playwright.sync_api import Browser, Dialog, Page, ViewportSize, expect

from tests.ui.chatting import ask, ask_until_taken, box, button, conversation, expect_answer, expect_answering, open_page, shelf, talk
from tests.ui.fakelitmus import Fake, running
from tests.ui.samples import HOSTILE, MARKDOWN
from ui.chat.conversation import ConversationError, Facts, load
from ui.flags.file import FlagFile
from ui.flags.flag import hash_of
from ui.page import mount
from ui.visitors import Visitors

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
TWO_STEPS_AT_ONCE = """async () => {
    litmus.act("show", 4);
    await new Promise((done) => setTimeout(done, 1));
    litmus.act("show", 1);
}"""  # the answer to the last question, and the first answer
FULL_STORAGE = """() => {
    const set = Storage.prototype.setItem;
    Storage.prototype.setItem = function (key, value) {
        if (this === localStorage) throw new DOMException("full", "QuotaExceededError");
        set.call(this, key, value);
    };
}"""
NO_CLIPBOARD = """() => {
    navigator.clipboard.writeText = () => Promise.reject(new DOMException("refused", "NotAllowedError"));
    document.execCommand = () => false;
}"""
TWO_TABS = """() => {
    const { keep, get, put } = litmus.storage;
    const turn = (role, text, parent) => ({ role, text, ...(parent === undefined ? {} : { parent }) });
    const begun = [turn("user", "Who?"), turn("assistant", "Me.", 0)];
    const said = [keep({ id: "c", turns: [...begun, turn("user", "Given up", 1)], leaf: 2 })];
    const { conversation, ...entry } = get("c");
    put({ ...entry, conversation: { ...conversation, turns: [...begun, turn("user", "Why?", 1), turn("assistant", "So.", 2)], leaf: 3 } });
    for (const turns of [[...begun, turn("user", "When?", 1)], [...begun, turn("user", "When?", 1), turn("assistant", "Now.", 2)]]) {
        said.push(keep({ id: "c", turns, leaf: turns.length - 1 }));
    }
    const { leaf, turns } = get("c").conversation;
    return [said.map(Boolean), leaf, turns.map((each) => [each.text, each.parent ?? null])];
}"""

BEGIN = """() => {
    const { keep, get, put } = litmus.storage;
    keep({ id: "c", turns: [{ role: "user", text: "Who?" }, { role: "assistant", text: "Me.", parent: 0 }], leaf: 1 });
    put({ ...get("c"), title: "Mine", thumbs: { a: 1 } });
    litmus.shelf.draw();
}"""
GO_ON_ELSEWHERE = """() => {
    const answer = { role: "assistant", text: "You.", parent: 0 };
    const turns = [{ role: "user", text: "Who?" }, answer, { role: "user", text: "Why?", parent: 1 }];
    litmus.storage.put({ title: "Who?", updated: 1, thumbs: { b: 2 }, conversation: { id: "c", turns, leaf: 2 } });
}"""
NOW = """() => {
    const { title, thumbs, conversation } = litmus.storage.get("c");
    return [title, thumbs, conversation.leaf, conversation.turns.map((each) => [each.text, each.parent ?? null])];
}"""
IMPORT_EACH = """(texts) => texts.map((text) => {
    const file = `{"format": "litmus-conversations", "version": 1, "conversations": [{"conversation": ${text}}]}`;
    const { added } = litmus.storage.importText(file);
    localStorage.clear();
    return added === 1;
})"""
ASKED = {"role": "user", "text": "Who?"}
SAID = {"role": "assistant", "text": "Me.", "parent": 0}
LEAVES: list[dict[str, object]] = [{}, {"leaf": 0}, {"leaf": 1}, {"leaf": -1}, {"leaf": None}, {"foo": 1}, {"id": ""}, {"id": "a b"}]
FACTS = Facts(
    model="m",
    precision="int8",
    seed=-(2**62),
    ttft_ms=1.5,
    tokens_per_s=2,
    prompt_tokens=3,
    completion_tokens=4,
    finish="length",
    problem="p",
)


def option(page: Page, title: str, name: str) -> None:
    shelf(page).get_by_label(f"Options of {title}").click()
    shelf(page).get_by_role("button", name=name, exact=True).click()


def downloaded(page: Page, press: Callable[[], None]) -> str:
    with page.expect_download() as download:
        press()
    return Path(download.value.path()).read_text(encoding="utf-8")


@pytest.fixture
def viewport() -> ViewportSize:
    """Room for the list of conversations beside the chat."""
    return {"width": 1440, "height": 900}


def test_conversations_survive_a_reload_are_found_renamed_deleted_and_brought_back(loaded: Page):
    talk(loaded, "First question", "Second question")
    button(loaded, "New conversation").click()
    expect(loaded.get_by_text("Ask something, or pick an example.")).to_be_visible()
    talk(loaded, "Of another kind")
    loaded.reload()
    expect(conversation(loaded)).to_contain_text("Of another kind")
    shelf(loaded).get_by_role("button", name="First question", exact=True).click()
    expect(conversation(loaded)).to_contain_text("Second question")
    expect(conversation(loaded)).not_to_contain_text("Of another kind")
    shelf(loaded).get_by_label("Search").fill("KIND another")
    expect(shelf(loaded).get_by_role("listitem")).to_have_text(["Of another kind⋯RenameExport as MarkdownExport as JSONDelete"])
    shelf(loaded).get_by_label("Search").fill("")
    options = shelf(loaded).get_by_label("Options of First question")
    options.click()
    loaded.keyboard.press("Escape")
    expect(options).to_be_focused()
    expect(shelf(loaded).get_by_role("button", name="Rename")).to_be_hidden()
    options.click()
    shelf(loaded).get_by_role("heading").click()
    expect(shelf(loaded).get_by_role("button", name="Rename")).to_be_hidden()
    option(loaded, "First question", "Rename")
    shelf(loaded).get_by_label("New name").fill("Named by me")
    shelf(loaded).get_by_label("New name").press("Enter")
    talk_on(loaded, "Third question", 3)
    expect(shelf(loaded).get_by_role("button", name="Named by me", exact=True)).to_have_attribute("aria-current", "true")
    option(loaded, "Named by me", "Delete")
    expect(loaded.get_by_text("Ask something, or pick an example.")).to_be_visible()
    shelf(loaded).get_by_role("button", name="Undo").click()
    shelf(loaded).get_by_role("button", name="Named by me", exact=True).click()
    expect(conversation(loaded)).to_contain_text("Third question")


def test_what_another_tab_added_to_the_same_conversation_becomes_a_branch(loaded: Page):
    said, leaf, turns = loaded.evaluate(TWO_TABS)
    assert turns == [["Who?", None], ["Me.", 0], ["When?", 1], ["Now.", 2], ["Why?", 1], ["So.", 4]]
    assert (said, leaf) == ([False, True, True], 3)


def test_what_comes_back_joins_what_another_tab_has_made_of_it(loaded: Page):
    loaded.evaluate(BEGIN)
    option(loaded, "Mine", "Delete")
    loaded.evaluate(GO_ON_ELSEWHERE)
    shelf(loaded).get_by_role("button", name="Undo").click()
    expect(shelf(loaded).get_by_text("It is back.")).to_be_visible()
    title, thumbs, leaf, turns = loaded.evaluate(NOW)
    assert turns == [["Who?", None], ["You.", 0], ["Why?", 1], ["Me.", 0]]
    assert (title, thumbs, leaf) == ("Mine", {"a": 1, "b": 2}, 2)


def test_a_row_stays_as_it_is_while_somebody_types_in_it_or_its_menu_is_open(loaded: Page, fake: Fake):
    loaded.evaluate("litmus.storage.put({ title: '\u05e9\u05dc\u05d5\u05dd', updated: 2e12, conversation: { id: 'a', turns: [] } })")
    fake.hold_after = 1
    ask(loaded, "Who?")
    expect_answering(loaded)
    expect(button(loaded, "\u05e9\u05dc\u05d5\u05dd")).to_have_css("direction", "rtl")
    option(loaded, "Who?", "Rename")
    loaded.keyboard.type("Named ")
    fake.hold_after = None
    expect_answer(loaded)
    loaded.evaluate("localStorage.removeItem('litmus-chat-a'), dispatchEvent(new StorageEvent('storage'))")
    expect(shelf(loaded).get_by_role("listitem")).to_have_count(1)
    loaded.keyboard.type("by me")
    loaded.keyboard.press("Enter")
    expect(button(loaded, "Named by me")).to_be_visible()
    options = shelf(loaded).get_by_label("Options of Named by me")
    expect(options).to_be_focused()
    expect(box(loaded)).to_have_value("")
    expect(button(loaded, "Rename")).to_be_hidden()
    options.press("Enter")
    fake.words = ["Another answer."]
    loaded.evaluate("litmus.act('retry', 1)")
    expect(conversation(loaded)).to_contain_text("Another answer.")
    expect_answer(loaded)
    with loaded.expect_download() as download:
        shelf(loaded).get_by_role("button", name="Export as Markdown").click()
    assert "Another answer." in Path(download.value.path()).read_text(encoding="utf-8")
    loaded.evaluate("localStorage.clear(), dispatchEvent(new StorageEvent('storage'))")
    expect(shelf(loaded).get_by_role("button", name="Export as Markdown")).to_be_focused()
    loaded.evaluate(FULL_STORAGE)
    button(loaded, "Conversations").click()
    assert len(fake.requests) == 2


def test_conversations_are_listed_and_imported_as_far_as_they_can_be_opened(loaded: Page):
    facts = FACTS.model_dump()
    said = [{**SAID, **each} for each in ({"foo": 1}, {"thought": 5}, {"thought": None}, {"thought": "Hm.", "facts": facts}, {"facts": []})]
    said += [{**SAID, "facts": each} for each in ({"seed": "abc"}, {"seed": 1.5}, {"seed": 2**64}, {"seed": None}, {"model": None})]
    said += [{**SAID, "facts": each} for each in ({"finish": "no"}, {"foo": 1}, {"ttft_ms": "soon"}, {"toString": 1})]
    said += [{**SAID, "text": "\ud800"}, {**SAID, "parent": 1}, {**SAID, "parent": 0.5}, {"role": "assistant", "parent": 0}]
    conversations = [
        *({"id": "a", "turns": [ASKED, turn], "leaf": 1} for turn in said),
        *({"id": "a", "turns": [ASKED], **each} for each in LEAVES),
    ]
    texts = [json.dumps(each) for each in conversations]
    assert loaded.evaluate(IMPORT_EACH, texts) == [is_conversation(text) for text in texts]
    unreadable = ['{"conversation": {"id": "x"}}', '{"title": "t", "conversation": {"id": "x", "turns": [null]}}', "5", "null", "{bad"]
    untitled = [{"title": title, "conversation": {"id": "b", "turns": [ASKED], "leaf": 0}} for title in ("", " ", {"a": 1}, None)]
    for text in (*unreadable, *map(json.dumps, untitled)):
        loaded.evaluate("text => localStorage.setItem(`litmus-chat-${text.includes('Who?') ? 'b' : 'x'}`, text)", text)
        loaded.evaluate("litmus.shelf.draw()")
        titles = shelf(loaded).locator(".open").all_inner_texts()
        assert titles == (["Who?"] if "Who?" in text else [])


def is_conversation(text: str) -> bool:
    try:
        load(text)
    except ConversationError:
        return False
    return True


def talk_on(page: Page, question: str, count: int) -> None:
    ask_until_taken(page, question)
    expect_answer(page, count)


def test_edits_and_tries_are_branches_that_an_export_carries_and_an_import_brings(loaded: Page, fake: Fake):
    talk(loaded, "Who?")
    fake.words = ["Another answer."]
    button(loaded, "Retry").dblclick()
    expect(conversation(loaded)).to_contain_text("Another answer.")
    expect_answer(loaded)
    expect(conversation(loaded)).to_contain_text("2 of 2")
    expect(box(loaded)).to_have_value("")
    box(loaded).fill("A draft")
    button(loaded, "Edit").click()
    expect(box(loaded)).to_have_value("Who?")
    expect(box(loaded)).to_be_focused()
    ask_until_taken(loaded, "Where?")
    expect_answer(loaded)
    expect(box(loaded)).to_have_value("A draft")
    expect(conversation(loaded)).to_contain_text("2 of 2")
    loaded.get_by_title("Version before").click()
    expect(conversation(loaded)).to_contain_text("Who?")
    loaded.evaluate(TWO_STEPS_AT_ONCE)
    expect(conversation(loaded)).to_contain_text("a fox")
    loaded.get_by_title("Next version").last.click()
    expect(conversation(loaded)).to_contain_text("Another answer.")
    loaded.get_by_title("Version before").click()
    expect(conversation(loaded)).to_contain_text("a fox")
    assert [body["messages"][-1]["content"] for body in fake.requests] == ["Who?", "Who?", "Where?"]
    markdown = downloaded(loaded, lambda: option(loaded, "Who?", "Export as Markdown"))
    assert re.fullmatch(
        r"# Who\?\n\n## You\n\nWho\?\n\n## Answer \(storyteller, nf4, seed \d+\)\n\nOnce upon.*a crow\.\n", markdown, re.DOTALL
    )
    exported = downloaded(loaded, button(loaded, "Export all").click)
    turns = json.loads(exported)["conversations"][0]["conversation"]["turns"]
    assert [turn["text"] for turn in turns if turn["role"] == "user"] == ["Who?", "Where?"] and len(turns) == 5
    button(loaded, "Delete all").click()
    loaded.locator("input[type=file]").set_input_files({"name": "c.json", "mimeType": "application/json", "buffer": exported.encode()})
    expect(shelf(loaded).get_by_text("One conversation was added.")).to_be_visible()
    shelf(loaded).get_by_role("button", name="Who?", exact=True).click()
    expect(conversation(loaded)).to_contain_text("1 of 2")
    expect(shelf(loaded).get_by_role("status")).to_be_empty()
    loaded.locator("input[type=file]").set_input_files({"name": "c.json", "mimeType": "application/json", "buffer": b"{}"})
    expect(shelf(loaded).get_by_text("This file holds no conversations of this page.")).to_be_visible()
    loaded.evaluate(FULL_STORAGE)
    ask_until_taken(loaded, "One more?")
    expect(loaded.get_by_role("alert").filter(has_text="This browser's storage is full")).to_be_visible()
    expect_answer(loaded, 2)  # its request is not to reach the next test


def test_a_cut_answer_continues_goes_to_the_score_tab_and_undo_gives_the_question_back(loaded: Page, fake: Fake):
    fake.words, fake.finish_reason = ["Once upon"], "length"
    ask(loaded, "Tell me.")
    expect(conversation(loaded)).to_contain_text("it reached the limit of tokens")
    fake.words, fake.finish_reason = [" a time."], "stop"
    button(loaded, "Continue").click()
    expect(conversation(loaded)).to_contain_text("Once upon a time.")
    expect(button(loaded, "Continue")).to_have_count(0)
    expect(box(loaded)).to_be_focused()
    assert fake.requests[1]["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    assert fake.requests[1]["continue_final_message"] is True
    assert fake.requests[1]["seed"] == fake.requests[0]["seed"]
    button(loaded, "Score this answer").click()
    expect(loaded.get_by_role("tab", name="Score")).to_have_attribute("aria-selected", "true")
    expect(loaded.get_by_label("Text to score")).to_have_value("Once upon a time.")
    loaded.get_by_role("tab", name="Chat").click()
    button(loaded, "Undo").click()
    expect(box(loaded)).to_have_value("Tell me.")
    expect(box(loaded)).to_be_focused()
    expect(loaded.get_by_text("Ask something, or pick an example.")).to_be_visible()


def test_markdown_code_tables_and_formulas_are_drawn(loaded: Page, fake: Fake):
    loaded.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer = f"{MARKDOWN}\n- [x] done\n\n1. \u05e9\u05dc\u05d5\u05dd\n"  # in Hebrew
    fake.words, fake.thoughts = [answer], ["Let me <b>think</b>."]
    ask(loaded, "# *literal*\n    and indented")
    expect_answer(loaded)
    log = conversation(loaded)
    expect(log.locator("strong")).to_have_text("bold")
    expect(log.locator("td").first).to_have_text("Mercury")
    expect(log.locator(".katex").first).to_be_visible()
    expect(log).to_contain_text("for $5.")
    expect(log.locator("pre code .token").first).to_be_visible()
    expect(log).to_contain_text("# *literal*")
    expect(log.get_by_role("checkbox")).to_have_css("background-color", "rgb(13, 148, 136)")  # the accent
    for text in (box(loaded), log.locator("li").first, log.locator("p").first):
        expect(text).to_have_css("unicode-bidi", "plaintext")
    for marks, direction in (("ul", "ltr"), ("ol", "rtl")):
        expect(log.locator(marks).last).to_have_css("direction", direction)
    expect(log.get_by_text("Let me <b>think</b>.")).to_be_hidden()
    log.get_by_text("Thought").click()
    expect(log.get_by_text("Let me <b>think</b>.")).to_be_visible()
    with flashing(log, "Copied"):
        log.get_by_title("Copy", exact=True).last.click()
    assert loaded.evaluate("navigator.clipboard.readText()") == answer
    loaded.evaluate(NO_CLIPBOARD)
    with flashing(log, "This browser does not let the page copy"):
        log.get_by_title("Copy", exact=True).last.click()
    expect(log.get_by_title("Copy", exact=True).last).to_have_text("Copy")
    loaded.evaluate("delete navigator.clipboard.writeText")
    log.get_by_title("copy", exact=True).click()
    loaded.wait_for_function("async text => (await navigator.clipboard.readText()).trim() === text", arg='print("<b>")')


def test_a_hostile_answer_calls_nobody(loaded: Page, fake: Fake):
    """The fixture fails on a request to another origin, and on an error in the console, which a blocked one leaves."""
    fake.words, fake.thoughts = [HOSTILE], [HOSTILE]
    dialogs: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)

    loaded.on("dialog", note)
    ask(loaded, HOSTILE)
    expect_answer(loaded)
    expect(conversation(loaded)).to_contain_text("<script>fetch('http://evil.invalid/c')</script>")
    assert conversation(loaded).locator("img, script, iframe, image, [href^=javascript]").count() == 0
    assert dialogs == []
    loaded.remove_listener("dialog", note)


def test_two_browsers_do_not_see_each_other(fake: Fake, browser: Browser):
    one, two = browser.new_context(), browser.new_context()
    with running(mount(FastAPI(), Visitors(fake.url))) as url:
        pages = [open_page(context, url) for context in (one, two)]
        for page, question in zip(pages, ("Mine", "Yours"), strict=True):
            ask(page, question)
            expect_answer(page)
        expect(conversation(pages[0])).not_to_contain_text("Yours")
        expect(button(pages[0], "Good answer")).to_have_count(0)  # this page keeps no such notes
        pages[0].reload()
        expect(conversation(pages[0])).to_contain_text("Mine")
        expect(conversation(pages[0])).not_to_contain_text("Yours")
    one.close()
    two.close()


def test_a_thumb_is_kept_marked_taken_back_and_keeps_the_text_only_if_asked(loaded: Page, fake: Fake, flags: FlagFile):
    ask(loaded, "Tell me.")
    expect_answer(loaded)
    good, bad = button(loaded, "Good answer"), button(loaded, "Bad answer")
    good.focus()
    loaded.keyboard.press("Enter")
    expect(loaded.get_by_text("Noted: a good answer.")).to_be_visible()
    expect(good).to_have_attribute("aria-pressed", "true")
    bad.click()
    expect(loaded.get_by_text("Noted: a bad answer.")).to_be_visible()
    expect(good).to_have_attribute("aria-pressed", "false")
    loaded.get_by_label("Why? (optional)").fill("It lies.")
    button(loaded, "Add this").click()
    expect(loaded.get_by_text("This was kept, without the text.")).to_be_visible()
    assert violations(loaded) == []
    loaded.reload()
    expect(bad).to_have_attribute("aria-pressed", "true")
    good.click()
    loaded.get_by_label("Keep the answer's text, too.").check()
    button(loaded, "Add this").click()
    expect(loaded.get_by_text("This and the text were kept.")).to_be_visible()
    good.click()
    expect(loaded.get_by_text("Taken back.")).to_be_visible()
    expect(good).to_have_attribute("aria-pressed", "false")
    lines, answer = [json.loads(line) for line in flags.path.read_bytes().splitlines()], "".join(fake.words)
    assert [line["label"] for line in lines] == ["good", "bad", "bad", "good", "good", "withdrawn"]
    assert {(line["about"], line["hash"], line["model"]) for line in lines} == {("chat", hash_of(answer), "storyteller")}
    assert len({line["id"] for line in lines}) == 1
    assert [line.get("text") for line in lines] == [None, None, None, None, answer, None] and lines[2]["reason"] == "It lies."


def test_no_serious_violation_of_accessibility(loaded: Page, fake: Fake):
    fake.words, fake.thoughts, fake.finish_reason = [MARKDOWN], ["Hm."], "length"
    ask(loaded, "Hello")
    expect_answer(loaded)
    button(loaded, "Settings").click()
    loaded.locator("header.litmus summary").click()
    button(loaded, "Edit").click()
    expect(loaded.get_by_text("You are editing a question.")).to_be_visible()
    assert violations(loaded) == []
