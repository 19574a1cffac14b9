import json
from typing import Any

import gradio as gr
import pytest

from ui.chat import steps
from ui.chat.answer import Answer
from ui.chat.conversation import MAX_CHARACTERS, Conversation, Facts, load
from ui.chat.desk import Change

SERVED = ["storyteller", "nf4", 4096]
DONE = Facts(model="storyteller", prompt_tokens=5, completion_tokens=3)
TALK = Conversation(id="c").ask("Who?").answer("Me.", "", DONE)
NAMES = list(Change.__dataclass_fields__)


def changes(updates: tuple[Any, ...]) -> dict[str, Any]:
    """What a step changes, by name; what it leaves as it is is not there."""
    return {name: value for name, value in zip(NAMES, updates, strict=True) if value != gr.skip()}


def act(
    name: str, value: Any = None, kept: str = TALK.dump(), running: str = "", notice: str = "", box: str = "", editing: str = ""
) -> dict[str, Any]:
    return changes(steps.act(json.dumps([name, value]), running, kept, box, editing, notice, SERVED))


def test_a_question_starts_an_answer():
    change = changes(steps.send_question("", "", " Who?", "", ""))
    assert (change["running"], change["draft"]) == ("answer", []) and "box" not in change
    assert [turn.text for turn in load(change["kept"]).turns] == [" Who?"]
    assert (change["send"]["visible"], change["stop"]["visible"]) == (False, True)


def test_a_blank_question_changes_nothing():
    assert changes(steps.send_question("", "", "  ", "", "")) == {}


@pytest.mark.parametrize("args", [("answer", "", "Who?", "", ""), ("", "", "Who?", "", "It cannot chat.")])
def test_a_running_answer_and_a_mute_model_return_the_question(args: tuple[str, str, str, str, str]):
    assert changes(steps.send_question(*args)) == {"box": "Who?"}


def test_an_edited_question_starts_a_branch():
    conversation = load(changes(steps.send_question("", TALK.dump(), "Where?", '[0, ""]', ""))["kept"])
    assert (conversation.path, conversation.turns[2].text) == ([2], "Where?")


def test_a_conversation_that_is_too_long_or_broken_is_refused_in_a_sentence():
    assert "too long for the page" in changes(steps.send_question("", "", "x" * MAX_CHARACTERS, "", ""))["line"]
    assert list(changes(steps.send_question("", "{}", "Who?", "", ""))) == ["line", "box"]
    assert "not a conversation" in act("open", "{}")["line"]


def test_settings_out_of_bounds_are_told_before_anything_is_sent():
    hot = ("", "9")
    change = changes(steps.send_question("", "", "Who?", "", "", *hot))
    assert list(change) == ["line", "box"] and "Temperature must be a number from 0 to 2" in change["line"] and change["box"] == "Who?"
    retried = changes(steps.act('["retry", 1]', "", TALK.dump(), "", "", "", SERVED, *hot))
    assert list(retried) == ["line"] and "Temperature" in retried["line"]
    assert changes(steps.act('["undo", 1]', "", TALK.dump(), "", "", "", SERVED, *hot))["box"] == "Who?"


def test_an_answer_that_ended_becomes_a_turn():
    asked = Conversation(id="c").ask("Who?").dump()
    answer = Answer(0.0, "Me.")
    change = changes(steps.finish("answer", asked, steps.pack(answer, DONE), "", "", SERVED))
    assert [turn.text for turn in load(change["kept"]).turns] == ["Who?", "Me."]
    assert (change["running"], change["draft"], change["send"]["visible"], change["stop"]["visible"]) == ("", [], True, False)
    assert "8 of 4,096" in change["line"] and "box" not in change


def test_a_stream_that_goes_on_is_ended_by_stop_only():
    asked = Conversation(id="c").ask("Who?").dump()
    going_on = steps.pack(Answer(0.0, "Me"), Facts(finish="stopped"))
    assert changes(steps.finish("answer", asked, going_on, "", "", SERVED)) == {}
    assert load(changes(steps.stop("answer", asked, going_on, "", "", SERVED))["kept"]).turns[1].text == "Me"
    assert changes(steps.stop("", asked, going_on, "", "", SERVED)) == {}


@pytest.mark.parametrize(("box", "after"), [("", "Who?"), ("Next", "Next")])
def test_a_question_without_an_answer_returns_to_an_empty_box(box: str, after: str):
    change = changes(steps.stop("answer", Conversation(id="c").ask("Who?").dump(), [], box, "", SERVED))
    assert change["box"] == after
    assert load(change["kept"]).turns[1].facts == Facts(finish="stopped")
    assert "box" not in changes(steps.stop("answer", Conversation(id="c").ask("Who?").dump(), [], "", "", SERVED, "retry"))


def test_a_continued_answer_grows():
    draft = steps.pack(Answer(0.0, " More."), DONE)
    assert load(changes(steps.finish("continue", TALK.dump(), draft, "", "", SERVED))["kept"]).turns[1].text == "Me. More."


def test_a_continuation_that_fails_is_told_in_the_line_only():
    failed = steps.pack(Answer(0.0), Facts(finish="failed", problem="The context holds 1024."))
    change = changes(steps.finish("continue", TALK.dump(), failed, "", "", SERVED))
    assert change["kept"] == TALK.dump() and "The context holds 1024." in change["line"]
    assert change["running"] == "" and "box" not in change


def test_actions_choose_what_is_shown():
    assert act("new")["kept"] == ""
    assert act("open", TALK.dump(), kept="")["kept"] == TALK.dump()
    assert load(act("undo")["kept"]).path == [] and act("undo")["box"] == "Who?"
    branched = TALK.edit(0, "Where?")
    assert load(act("show", 0, kept=branched.dump())["kept"]).path == [0, 1]
    assert act("edit", 0) == {"editing": '[0, ""]', "banner": steps.BANNER, "box": "Who?"}
    assert act("cancel", editing='[0, ""]', box="Where?") == {"editing": "", "banner": "", "box": ""}
    assert act("write", "Tell me.") == {"box": "Tell me."}
    assert act("score", 1) == {"score_text": "Me."}


def test_a_draft_is_not_lost_to_an_old_question():
    editing = act("edit", 0, box="A draft")["editing"]
    assert act("cancel", editing=editing, box="Where?")["box"] == "A draft"
    assert act("undo", box="A draft")["box"] == "Who?\n\nA draft"
    asked_again = TALK.edit(0, "Where?")
    assert act("edit", 2, kept=asked_again.dump(), editing=editing, box="Who?")["editing"] == '[2, "A draft"]'
    for name, value in (("show", 0), ("new", None), ("open", asked_again.dump()), ("retry", 1)):
        assert act(name, value, editing=editing, box="Who?")["box"] == "A draft"
        assert act(name, value, editing=editing, box="Who are")["box"] == "A draft\n\nWho are"
        assert "box" not in act(name, value, box="A draft")


def test_actions_start_an_answer_where_the_model_can_chat():
    assert act("retry", 1)["running"] == "answer" and load(act("retry", 1)["kept"]).path == [0]
    assert act("continue", 1)["running"] == "continue"
    assert act("continue", 0, kept=Conversation(id="c").ask("Who?").dump()) == {}
    assert act("retry", 1, notice="It cannot chat.") == {}
    assert act("edit", 0, notice="It cannot chat.")["box"] == "Who?"
    assert act("new", running="answer") == {}


def test_the_line_and_the_button_follow_another_model_unless_an_answer_runs():
    assert "8 of 100 tokens" in steps.redraw_line("", TALK.dump(), ["big", "nf4", 100])
    assert steps.redraw_line("", "", SERVED) == gr.skip() == steps.redraw_line("", TALK.dump(), [])
    assert steps.redraw_line("answer", TALK.dump(), SERVED) == gr.skip() == steps.send_update("answer", "")
    assert (steps.send_update("", "mute")["interactive"], steps.send_update("", "")["interactive"]) == (False, True)
