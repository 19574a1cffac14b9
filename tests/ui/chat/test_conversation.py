import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ui.chat.conversation import Conversation, ConversationError, Facts, load, request_messages

DONE = Facts(finish="stop")
EMPTY = Conversation(id="c")


def texts(conversation: Conversation) -> list[str]:
    return [conversation.turns[index].text for index in conversation.path]


def talk(*texts: str) -> Conversation:
    conversation = EMPTY
    for index, text in enumerate(texts):
        conversation = conversation.answer(text, "", DONE) if index % 2 else conversation.ask(text)
    return conversation


def test_questions_and_answers_follow_one_another():
    conversation = talk("Who?", "Me.", "Why?")
    assert texts(conversation) == ["Who?", "Me.", "Why?"]
    assert request_messages(conversation) == [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Why?"},
    ]


def test_an_edited_question_is_a_branch_and_the_old_one_stays():
    edited = talk("Who?", "Me.", "Why?", "So.").edit(0, "Where?").answer("Here.", "", DONE)
    assert texts(edited) == ["Where?", "Here."]
    assert edited.versions(0) == [0, 4]
    assert texts(edited.show(0)) == ["Who?", "Me.", "Why?", "So."]


def test_another_try_is_a_branch_beside_the_answer():
    retried = talk("Who?", "Me.").retry(1)
    assert texts(retried) == ["Who?"]
    again = retried.answer("You.", "", DONE)
    assert (texts(again), again.versions(1)) == (["Who?", "You."], [1, 2])
    assert texts(again.show(1)) == ["Who?", "Me."]


def test_showing_a_branch_goes_down_to_its_newest_end():
    conversation = talk("Who?", "Me.", "Why?", "So.").retry(3).answer("Because.", "", DONE).edit(0, "Where?")
    assert texts(conversation.show(0)) == ["Who?", "Me.", "Why?", "Because."]


def test_undo_goes_back_before_the_last_question_and_forgets_nothing():
    before = talk("Who?", "Me.", "Why?", "So.").undo()
    assert (texts(before), len(before.turns)) == (["Who?", "Me."], 4)
    assert texts(before.ask("When?")) == ["Who?", "Me.", "When?"]
    assert before.undo().path == []


@pytest.mark.parametrize("again", ["Who?", "Where?"])
def test_a_question_without_an_answer_gives_its_place_to_the_next_one(again: str):
    failed = talk("Who?").answer("", "", Facts(finish="failed", problem="The queue is full."))
    assert request_messages(failed) == []
    asked = failed.ask(again)
    assert (texts(asked), len(asked.turns)) == ([again], 1)
    assert texts(failed.retry(1)) == ["Who?"]
    assert len(failed.retry(1).answer("Me.", "", DONE).turns) == 2


def test_a_continued_answer_grows_and_counts_all_its_tokens():
    cut = EMPTY.ask("Who?").answer("Once ", "hm", Facts(prompt_tokens=10, completion_tokens=5, finish="length"))
    whole = cut.extend("upon.", Facts(prompt_tokens=15, completion_tokens=3))
    assert (texts(whole), whole.turns[1].thought) == (["Who?", "Once upon."], "hm")
    facts = whole.turns[1].facts
    assert facts is not None and (facts.prompt_tokens, facts.completion_tokens, facts.finish) == (10, 8, "stop")


def test_a_continued_answer_keeps_the_seed_of_its_first_part_and_all_its_facts_where_nothing_came():
    first = Facts(model="m", seed=7, prompt_tokens=10, completion_tokens=5, finish="length")
    cut = EMPTY.ask("Who?").answer("Once ", "", first)
    assert cut.extend("", Facts(seed=9, finish="failed", problem="No room.")) == cut == cut.extend("", Facts(finish="stopped"))
    assert cut.extend("", Facts(seed=9, prompt_tokens=15, completion_tokens=1)).turns[1].facts == first.model_copy(
        update={"finish": "stop"}
    )
    for later in (Facts(seed=9, prompt_tokens=15, completion_tokens=3), Facts(seed=9, finish="stopped")):
        facts = cut.extend("upon.", later).turns[1].facts
        assert facts is not None and facts.seed == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"id": "c", "turns": [{"role": "assistant", "text": "x"}]}',
        '{"id": "c", "turns": [{"role": "user", "text": "x", "parent": 0}]}',
        '{"id": "c", "turns": [{"role": "user", "text": "x"}, {"role": "user", "text": "y", "parent": 0}]}',
        '{"id": "c", "leaf": 0}',
        '{"id": "../x"}',
        '{"id": "c", "more": 1}',
    ],
)
def test_what_is_no_conversation_is_refused_in_a_sentence(text: str):
    with pytest.raises(ConversationError, match="not a conversation that the page can read"):
        load(text)


STEPS = st.lists(st.tuples(st.sampled_from(["ask", "answer", "fail", "edit", "retry", "undo", "show"]), st.integers(0, 30)), max_size=25)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_any_steps_leave_a_tree_that_survives_the_browser_and_loses_no_answer(steps: list[tuple[str, int]]):
    conversation, said = EMPTY, set()
    for number, (step, index) in enumerate(steps):
        conversation = after(conversation, step, index, str(number))
        said |= {turn.text for turn in conversation.turns if turn.role == "assistant"} - {""}
        roles = [conversation.turns[place].role for place in conversation.path]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
        assert load(conversation.dump()) == conversation
        sent = request_messages(conversation)
        assert all(message["content"] for message in sent) and [message["role"] for message in sent] == roles[: len(sent)]
    assert said == {turn.text for turn in conversation.turns if turn.role == "assistant"} - {""}


def after(conversation: Conversation, step: str, index: int, text: str) -> Conversation:
    """The conversation after a step that the page offers there; itself where it does not offer it."""
    waits = conversation.last is not None and conversation.last.role == "user"
    index = index % len(conversation.turns) if conversation.turns else 0
    is_question = bool(conversation.turns) and conversation.turns[index].role == "user"
    offered = {
        "ask": (True, lambda: conversation.ask(text)),
        "answer": (waits, lambda: conversation.answer(text, "", DONE)),
        "fail": (waits, lambda: conversation.answer("", "", DONE)),
        "edit": (is_question, lambda: conversation.edit(index, text)),
        "retry": (bool(conversation.path), lambda: conversation.retry(index)),
        "undo": (bool(conversation.path), conversation.undo),
        "show": (bool(conversation.turns), lambda: conversation.show(index)),
    }
    is_offered, result = offered[step]
    return result() if is_offered else conversation
