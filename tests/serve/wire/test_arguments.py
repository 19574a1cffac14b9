"""Arguments of tool calls that break off anywhere, and other texts, become objects."""

import json

import pytest

from serve.wire.arguments import object_of

WHOLE = {"city": 'Par"is \u00e9\\\U0001f600', "n": [1, {"a": -2.5e3}], "ok": True, "no": None, "deep": {"x": [[], {}]}}


@pytest.mark.parametrize("ascii_only", [False, True])
def test_an_object_that_breaks_off_has_what_it_had(ascii_only: bool) -> None:
    text = json.dumps(WHOLE, ensure_ascii=ascii_only)
    for end in range(len(text)):
        broken = object_of(text[:end])
        assert list(broken) == list(WHOLE)[: len(broken)], text[:end]
        assert all(broken[name] == WHOLE[name] for name in list(broken)[:-1]), text[:end]
        json.dumps(broken, ensure_ascii=False).encode()  # no half of a character
    assert object_of(text) == WHOLE
    assert object_of('{"city": "Par') == {"city": "Par"} and object_of('{"a": 1, "b": fal') == {"a": 1}


@pytest.mark.parametrize("text", ["3", "[]", '"x"', "no", "{'a': 1}", "[" * 100_000, '{"a" 1}'])
def test_another_text_is_the_only_property(text: str) -> None:
    assert object_of(text) == {"arguments": text}


def test_white_space_is_no_arguments_and_depth_is_no_error() -> None:
    assert object_of("") == object_of(" \n") == {}
    for depth in (900, 1000, 100_000):
        assert len(object_of('{"a": ' * depth)) == 1


def test_line_breaks_in_a_text_are_kept() -> None:
    assert object_of('{"a": "x\ny"}') == {"a": "x\ny"}
