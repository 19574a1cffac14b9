"""Tool calls whose arguments are written one by one: learned from a template, held to a grammar, read back as JSON."""

import json
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parameter_templates import JSON, OLMO, QWEN, RING, SPECIAL, TEMPLATES, TOOLS, VISIBLE, Model
from tokenizers import AddedToken
from transformers import AutoTokenizer

from app.engine.grammar import GrammarCompiler
from app.forms.learning import learn_tool_format
from app.forms.parameters import ParameterFormat, parameters_problem
from app.forms.parser import ArgumentsDelta, TextDelta, ToolCallParser, ToolCallStart
from app.forms.tools import ToolFormat, ToolsUnsupported

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"))
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("ring", {"why": 'a "b" <c>\n\\n\n{"d": 1}', "times": 7, "who": ["fox", "crow"], "tone": "low"}),
    ("ring_off", {}),
    ("ring", {"why": "", "tone": "high"}),
]


@pytest.fixture(scope="module")
def models(bundled: Any) -> dict[str, Model]:
    base = AutoTokenizer.from_pretrained(bundled)
    base.add_tokens([AddedToken(text, special=False, normalized=False) for text in VISIBLE])
    base.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return {name: Model(base, name) for name in TEMPLATES}


@pytest.fixture(params=TEMPLATES)
def model(models: dict[str, Model], request: pytest.FixtureRequest) -> Model:
    return models[request.param]


def parse(format: ToolFormat, forced: bool, chunks: Sequence[str]) -> tuple[str, list[tuple[str, dict[str, Any]]], bool]:
    parser, text, calls = ToolCallParser(format, forced, TOOLS), "", list[list[str]]()
    for event in [*(event for chunk in chunks for event in parser.push(chunk)), *parser.flush()]:
        match event:
            case TextDelta(piece):
                text += piece
            case ToolCallStart(_, name):
                calls.append([name, ""])
            case ArgumentsDelta(index, arguments):
                calls[index][1] += arguments
    return text, [(name, json.loads(arguments)) for name, arguments in calls], parser.complete


def test_marks_are_learned_where_a_reader_would_put_them(models: dict[str, Model]) -> None:
    assert models["qwen"].format.parameters == ParameterFormat("<parameter=", ">\n", "\n</parameter>\n", "")
    assert models["glm"].format.parameters == ParameterFormat("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", "")
    assert models["minimax"].format.parameters == ParameterFormat('<parameter name="', '">', "</parameter>\n", "")
    assert models["olmo"].format.parameters == ParameterFormat("", "=", "", ", ", "'")
    qwen, olmo = models["qwen"].format, models["olmo"].format
    assert (qwen.before_name, qwen.before_arguments) == ("<tool_call>\n<function=", (">\n",))
    assert (qwen.between_calls, qwen.after_calls) == (
        ("</function>\n</tool_call>\n<tool_call>\n<function=",),
        ("</function>\n</tool_call>",),
    )
    assert (olmo.before_name, olmo.before_arguments, olmo.between_calls, olmo.after_calls) == (
        "<function_calls>\n",
        ("(",),
        (")\n",),
        (")\n</function_calls>",),
    )


def test_the_template_itself_writes_what_is_learned(models: dict[str, Model]) -> None:
    calls = [{"type": "function", "id": "a", "function": {"name": name, "arguments": arguments}} for name, arguments in CALLS]
    for name in ("qwen", "glm", "minimax", "deepseek"):
        written = models[name].turn([{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": calls}])
        assert models[name].write(CALLS) in written


def test_a_call_in_python_is_what_the_template_writes(models: dict[str, Model]) -> None:
    arguments = {"why": "so it is", "times": 7, "tone": "low"}
    call = {"type": "function", "id": "a", "function": {"name": "ring", "arguments": arguments}}
    for name in ("olmo", "lfm"):
        written = models[name].turn([{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call, call]}])
        assert models[name].write([("ring", arguments)] * 2) in written
    assert models["lfm"].write([("ring", arguments)]) == "<|tool_call_start|>[ring(why='so it is', times=7, tone='low')]<|tool_call_end|>"
    assert models["llama"].write([("ring", arguments)]) == '[ring(why="so it is", times=7, tone="low")]'


def test_truth_values_stand_as_the_template_writes_them(models: dict[str, Model]) -> None:
    tools: dict[str, Any] = {"ring": {"type": "object", "properties": {"loud": {"type": "boolean"}, "who": {"type": "null"}}}}
    for name, text in {"lfm": "ring(loud=True, who=None)", "olmo": "ring(loud=true, who=null)"}.items():
        format = models[name].format
        answer = f"{format.before_name}{text[:-1]}{format.after_calls[0]}"
        assert models[name].allows(format.grammar(tools, True, True), answer)
        events = ToolCallParser(format, True, tools).push(answer)
        assert "".join(event.arguments for event in events if isinstance(event, ArgumentsDelta)) == '{"loud": true, "who": null}'


def test_text_may_hold_brackets_where_a_call_begins_by_its_name(models: dict[str, Model]) -> None:
    model = models["llama"]
    grammar = model.format.grammar(TOOLS, False, True)
    for text in ("[1]", "[sing(a=1)]", "[ring, ring_off]", "a [ring"):
        assert model.allows(grammar, text) and parse(model.format, False, [text]) == (text, [], True)
    call = model.write([("ring_off", {})])
    assert call == "[ring_off()]" and model.allows(grammar, f"[1] {call}")
    assert parse(model.format, False, list(f"[1] {call}")) == ("[1] ", [("ring_off", {})], True)
    assert not model.allows(grammar, f"{call} and") and not model.allows(grammar, '[ring(times="7")]')


def test_forced_answers_are_nothing_but_valid_calls(model: Model) -> None:
    grammar = model.format.grammar(TOOLS, True, True)
    call = CALLS[0][1]
    assert model.allows(grammar, model.write(CALLS)) and model.allows(grammar, model.write(CALLS[1:2]))
    assert not model.allows(model.format.grammar(TOOLS, True, False), model.write(CALLS))
    for wrong in ({"why": "x"}, {**call, "times": 100}, {**call, "who": ["hen"]}, {**call, "tone": "loud"}, {"tone": "low", "why": "x"}):
        assert not model.allows(grammar, model.write([("ring", wrong)])), wrong
    assert not model.allows(grammar, "So: " + model.write(CALLS)) and not model.allows(grammar, model.write(CALLS) + "Done.")


def test_free_answers_are_text_or_end_in_calls(model: Model) -> None:
    grammar = model.format.grammar(TOOLS, False, True)
    for text in ("", "It is late.\n\n<a> f(x=1)", "So:\n" + model.write(CALLS)):
        assert model.allows(grammar, text), text
    assert not model.allows(grammar, model.format.beginnings(["ring"])[0] + "sing")


@settings(max_examples=60, deadline=None)
@given(
    why=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<")), cuts=st.lists(st.integers(0, 999)), forced=st.booleans()
)
def test_calls_are_read_in_any_pieces(models: dict[str, Model], why: str, cuts: list[int], forced: bool) -> None:
    calls = [("ring", {"why": why, "tone": "low"}), *CALLS]
    for model in models.values():
        text = model.write(calls) if forced else f"I will. {model.write(calls)}"
        bounds = [0, *sorted(cut % len(text) for cut in cuts), len(text)]
        pieces = [text[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
        assert parse(model.format, forced, pieces) == ("" if forced else "I will. ", calls, True)


def test_what_the_grammar_allows_is_read_and_valid(model: Model) -> None:
    grammar = model.format.grammar(TOOLS, True, True)
    names = set()
    for seed in range(20):
        text, calls, is_complete = parse(model.format, True, [model.random_answer(grammar, random.Random(seed))])
        assert is_complete and not text and calls
        for name, arguments in calls:
            names.add(name)
            jsonschema.validate(arguments, TOOLS[name])
    assert names == set(TOOLS)


def test_an_answer_that_is_cut_is_not_complete(model: Model) -> None:
    whole = model.write(CALLS[:1])
    for end in range(len(model.format.beginnings(["ring"])[0]), len(whole)):
        parser = ToolCallParser(model.format, True, TOOLS)
        parser.push(whole[:end])
        assert not parser.complete, whole[:end]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (QWEN.replace(JSON, "{{ v if v is string else '<i>' ~ v ~ '</i>' }}"), "one JSON object"),
        (OLMO.replace("<function_calls>\n", ""), "does not mark tool calls"),
    ],
)
def test_other_ways_are_left_to_the_general_form(models: dict[str, Model], template: str, says: str) -> None:
    model = models["qwen"]
    learned = learn_tool_format(partial(model.turn, template=template), model.added)
    assert isinstance(learned, ToolsUnsupported) and says in learned.reason


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (RING, None),
        ({"type": "object"}, None),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, "anyOf"),
        ({"type": "object", "properties": {"a b": {}}}, "names of letters"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "required"),
        ({"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": {}}}, "$ref"),
    ],
)
def test_schemas_that_have_no_place_are_named(schema: dict[str, Any], says: str | None) -> None:
    problem = parameters_problem(schema)
    assert problem is None if says is None else says in (problem or "")


def test_a_call_is_complete_whenever_its_shortest_completion_fits(model: Model) -> None:
    """Texts that stand as they are end by a mark, which a completion has to know."""
    end_tokens = model.base.encode("<|im_end|>", add_special_tokens=False)
    compiler = GrammarCompiler(model.base, len(model.base), end_tokens, [mark for mark in model.format.closing_marks if mark])
    grammar = model.format.grammar(TOOLS, True, True)
    for seed in range(6):
        rng, ids, state = random.Random(seed), list[int](), compiler.compile(grammar, 90).result()
        for left in range(89, -1, -1):
            token = int(rng.choice(np.flatnonzero(state.allowed_tokens()[: len(model.base)])))
            ids.append(state.steer(token, left))
            if state.accept(ids[-1]) or ids[-1] in end_tokens:
                break
        text = str(model.base.decode([id for id in ids if id not in end_tokens]))
        _, calls, is_complete = parse(model.format, True, [text])
        assert is_complete and calls, text
