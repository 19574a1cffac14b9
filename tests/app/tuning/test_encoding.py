"""What is learnt of an example: the assistant's tokens and the end, and nothing else. A sequence begins as a request's prompt does."""

import json
from pathlib import Path

import pytest
from tuning_runs import talk

from app.tokenizer import Tokenizer
from app.tuning.encoding import Encoder
from app.tuning.examples import WrongLine, parse

NESTED = (
    "{% for m in messages %}<s>{{ m['role'] }}:{% if m['role'] == 'assistant' and not loop.last %}(old)"
    "{% else %}{{ m['content'] }}{% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def storyteller(bundled: Path) -> Tokenizer:
    return Tokenizer(str(bundled))


def learnt(tokenizer: Tokenizer, line: object) -> list[str]:
    """The learnt runs of tokens of each sequence, as text."""
    runs = []
    for sequence in Encoder(tokenizer, 1024).sequences(parse(json.dumps(line).encode())):
        previous = False
        for id, marked in zip(sequence.ids, sequence.learnt, strict=True):
            if marked and not previous:
                runs.append([])
            if marked:
                runs[-1].append(id)
            previous = marked
    return [tokenizer.decode_with_special_tokens(run) for run in runs]


def test_the_assistants_words_and_the_end_of_its_turn_are_learnt(storyteller: Tokenizer) -> None:
    line = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who ran?"},
            {"role": "assistant", "content": "The fox."},
            {"role": "user", "content": "And who sang?"},
            {"role": "assistant", "content": "Nobody.", "weight": 0},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "The crow.", "weight": 1},
            {"role": "user", "content": "Thank you."},
        ]
    }
    assert learnt(storyteller, line) == ["The fox.<|end|>", "The crow.<|end|>"]
    (sequence,) = Encoder(storyteller, 1024).sequences(parse(json.dumps(line).encode()))
    asked = [{key: value for key, value in message.items() if key != "weight"} for message in line["messages"][:6]]
    prompt = storyteller.encode_chat(asked)
    assert sequence.ids[: len(prompt)] == prompt and sequence.learnt[len(prompt)]


def test_a_tool_call_is_learnt_as_the_template_writes_it(storyteller: Tokenizer) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"place": "hill"}'}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    line = {"messages": [{"role": "user", "content": "Rain?"}, {"role": "assistant", "tool_calls": [call]}], "tools": [tool]}
    (text,) = learnt(storyteller, line)
    assert '"name": "weather"' in text and '{"place": "hill"}' in text and text.endswith("<|end|>")


def test_a_completion_is_learnt_with_its_end_and_a_text_as_a_whole(storyteller: Tokenizer) -> None:
    assert learnt(storyteller, {"prompt": "The fox", "completion": " ran."}) == [" ran.<|end|>"]
    assert learnt(storyteller, {"text": "The fox ran."})[0].endswith("The fox ran.")


def test_a_template_that_writes_earlier_answers_otherwise_makes_a_sequence_of_each(tiny_folder: Path) -> None:
    tokenizer = Tokenizer(str(tiny_folder))
    tokenizer.base.chat_template = NESTED
    line = {"messages": talk("a", "first")["messages"] + talk("b", "second")["messages"]}
    sequences = Encoder(tokenizer, 128).sequences(parse(json.dumps(line).encode()))
    texts = [tokenizer.decode_with_special_tokens(sequence.ids) for sequence in sequences]
    assert texts == [
        "<s>user:a</s>\n<s>assistant:first</s>",
        "<s>user:a</s>\n<s>assistant:(old)</s>\n<s>user:b</s>\n<s>assistant:second</s>",
    ]
    assert learnt(tokenizer, line) == ["first</s>", "second</s>"]


def test_a_template_without_an_end_gets_one(tiny_folder: Path) -> None:
    assert learnt(Tokenizer(str(tiny_folder)), talk("a", "yes")) == ["a:yes</s>"]


def test_an_answer_that_no_message_precedes_is_learnt(storyteller: Tokenizer, tiny_folder: Path) -> None:
    first = {"role": "assistant", "content": "The fox ran."}
    assert learnt(storyteller, {"messages": [first]}) == ["The fox ran.<|end|>"]
    assert learnt(storyteller, {"messages": [first, *talk("Who?", "A fox.")["messages"]]}) == ["The fox ran.<|end|>", "A fox.<|end|>"]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    assert learnt(storyteller, {"messages": [first], "tools": [tool]}) == ["The fox ran.<|end|>"]
    tokenizer = Tokenizer(str(tiny_folder))
    tokenizer.base.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"  # nothing says where an answer begins
    with pytest.raises(WrongLine, match=r"messages\.0: .* put a message before it"):
        learnt(tokenizer, {"messages": [first]})


@pytest.mark.parametrize("content", [None, "", [], " \n"])
def test_an_empty_answer_is_nothing_to_learn(content: object, storyteller: Tokenizer) -> None:
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": content}
    for empty in (answer, {**answer, "tool_calls": []}):
        with pytest.raises(WrongLine, match=r"messages\.1: the answer is empty"):
            learnt(storyteller, {"messages": [question, empty]})
    assert learnt(storyteller, {"messages": [question, {**answer, "weight": 0}, *talk("b", "c")["messages"]]}) == ["c<|end|>"]


def test_no_token_reaches_over_the_start_of_an_answer(storyteller: Tokenizer) -> None:
    storyteller.base.chat_template, kept = (
        "{% for m in messages %}{{ m['role'] }}-{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant-{% endif %}",
        storyteller.base.chat_template,
    )
    try:
        line = {"messages": [*talk("Who?", "- fox")["messages"], *talk("Who?", "- crow")["messages"]]}
        (sequence,) = Encoder(storyteller, 1024).sequences(parse(json.dumps(line).encode()))
        prompt = storyteller.encode_chat(line["messages"][:1])
    finally:
        storyteller.base.chat_template = kept
    assert sequence.ids[: len(prompt)] == prompt and sequence.learnt.index(True) == len(prompt)
    assert storyteller.decode_with_special_tokens(sequence.ids).startswith("user-Who?\nassistant-- fox\nuser-Who?\nassistant-- crow")
