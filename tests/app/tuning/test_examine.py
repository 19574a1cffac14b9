"""Files are checked line by line: what is wrong is told with the line's number, and nothing of its text."""

from pathlib import Path

import pytest
from tuning_runs import Told, jsonl, recipe, talk

from app.ledger.recipe import Run
from app.tuning import examine as module
from app.tuning.examine import examine

LONG = {"text": "secret" * 40}
USER = {"role": "user", "content": "secret"}
WRONG = {
    "not json": ("{secret", "the line is not JSON"),
    "no object": ('["secret"]', "must be a JSON object"),
    "nothing known": ({"secret": 1}, "none of messages, prompt and completion, or text"),
    "unknown key": ({"text": "a", "secret": 1}, "'secret' is none of text"),
    "no messages": ({"messages": []}, "at least one message"),
    "wrong role": ({"messages": [USER, {"role": "robot", "content": "secret"}]}, "messages.1.role: Input should be 'system'"),
    "no assistant": ({"messages": [USER]}, "no message is the assistant's"),
    "weight 2": (talk("secret", "a", weight=2), "messages.1.weight must be 0 or 1"),
    "weight true": (talk("secret", "a", weight=True), "messages.1.weight must be 0 or 1"),
    "weight of a user": ({"messages": [{**USER, "weight": 1}]}, "messages.0.weight is only for messages of the assistant"),
    "all weights 0": (talk("secret", "a", weight=0), "has weight 0, so there is nothing to learn"),
    "too long": (LONG, "it has 241 tokens, more than the 128"),
    "half a pair": ({"prompt": "secret"}, "'completion' is missing"),
    "empty text": ({"text": ""}, "'text' is empty"),
    "a surrogate": ('{"text": "secret \\ud800"}', "lone surrogate"),
    "an empty answer": (talk("secret", ""), "messages.1: the answer is empty, so there is nothing to learn"),
    "arguments nested deep": (
        talk("secret", "", tool_calls=[{"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}]),
        "messages.1: the arguments of a tool call are not JSON",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "secret"}}]}]},
        "'image_url' is not supported",
    ),
}


def check(tmp_path: Path, tiny_folder: Path, *lines: object, validation: tuple[object, ...] = ()) -> tuple[bool, Told]:
    told = Told()
    run = Run(
        recipe=recipe(tiny_folder),
        training_file=jsonl(tmp_path / "t.jsonl", *lines),
        validation_file=jsonl(tmp_path / "v.jsonl", *validation) if validation else None,
        threads=1,
    )
    return examine(run, tmp_path, told), told


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_is_told_with_its_number_and_its_reason(name: str, tmp_path: Path, tiny_folder: Path) -> None:
    line, reason = WRONG[name]
    right, told = check(tmp_path, tiny_folder, talk("a", "b"), "", line)
    (event,) = told.of("event")
    (failure,) = told.of("failed")
    assert not right and event["line"] == 3 and reason in event["message"] and reason in failure["message"]
    assert (failure["code"], failure["param"]) == ("invalid_training_file", "training_file")
    assert failure["message"].startswith("1 line is wrong in the training file; line 3: ")
    assert "secret" not in event["message"] or name == "unknown key"


def test_a_line_that_is_too_long_by_a_setting_names_it(tmp_path: Path, tiny_folder: Path) -> None:
    for context, reason in (
        (64, "more than the 64 that the setting model.context allows; divide it"),
        (512, "more than the 128 that the model"),
    ):
        limited, told = recipe(tiny_folder).model_copy(update={"context": context}), Told()
        run = Run(recipe=limited, training_file=jsonl(tmp_path / "t.jsonl", LONG), validation_file=None, threads=1)
        assert not examine(run, tmp_path, told) and reason in told.of("event")[0]["message"]


def test_a_file_without_lines_and_a_wrong_validation_file_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    right, told = check(tmp_path, tiny_folder, "", "  ")
    assert not right and "has no lines" in told.of("failed")[0]["message"]
    right, told = check(tmp_path, tiny_folder, talk("a", "b"), validation=("?",))
    assert not right and told.of("failed")[0]["param"] == "validation_file"


def test_of_many_wrong_lines_some_are_listed_and_reading_ends(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WRONG", 150)
    right, told = check(tmp_path, tiny_folder, *["?"] * 200)
    assert not right and len(told.of("event")) == module.MAX_LISTED + 1
    assert told.of("failed")[0]["message"].startswith("150 lines or more are wrong")


def test_a_line_longer_than_a_line_may_be_is_not_held(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 200)
    right, told = check(tmp_path, tiny_folder, talk("a", "b"), {"text": "x" * 1000}, talk("a", "b"), "?")
    assert [event["line"] for event in told.of("event")] == [2, 4] and "longer than 200 bytes" in told.of("event")[0]["message"]


def test_conversations_are_rendered_by_the_template_that_the_base_is_served_with(tmp_path: Path, tiny_folder: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}")
    served = recipe(tiny_folder).model_copy(update={"chat_template": str(file)})
    told = Told()
    run = Run(recipe=served, training_file=jsonl(tmp_path / "t.jsonl", talk("a", "b")), validation_file=None, threads=1)
    assert check(tmp_path, tiny_folder, talk("a", "b"))[0] and not examine(run, tmp_path, told)
    assert "does not begin it as it begins an answer" in str(told.messages)


def test_a_line_over_which_a_template_fails_in_any_way_is_wrong(tmp_path: Path, tiny_folder: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}{{ 1 // (m.content | length) }}{% endfor %}")
    served, told = recipe(tiny_folder).model_copy(update={"chat_template": str(file)}), Told()
    line = {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]}
    run = Run(recipe=served, training_file=jsonl(tmp_path / "t.jsonl", line), validation_file=None, threads=1)
    assert not examine(run, tmp_path, told) and "line 1: it cannot be tokenized (ZeroDivisionError)" in told.of("failed")[0]["message"]


def test_a_file_that_is_gone_from_the_disk_fails_the_job(tmp_path: Path, tiny_folder: Path) -> None:
    run, told = Run(recipe=recipe(tiny_folder), training_file=str(tmp_path / "gone"), validation_file=None, threads=1), Told()
    assert not examine(run, tmp_path, told)
    (failure,) = told.of("failed")
    assert (failure["code"], failure["param"]) == ("input_unavailable", "training_file") and "is gone" in failure["message"]
