"""The end of an answer: as short as a slow search over all bytes finds it, and always reached."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken

from app.engine.completion import Completions, allowed
from app.engine.grammar import GrammarCompiler
from app.forms.grammar import Schema, json_grammar
from app.forms.lark import choice_grammar
from app.forms.trial import byte_tokenizer
from app.forms.validation import schema_problem
from app.tokenizer import Tokenizer

LONGEST = 400


def object_of(**properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


NODE: Schema = {
    "$defs": {"node": object_of(name={"type": "string"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
    "$ref": "#/$defs/node",
}
SCHEMAS: tuple[Schema, ...] = (
    {},
    {"type": "integer"},
    {"type": "string", "minLength": 3},
    {"type": "string", "pattern": "^(ab){2,}c?$"},
    {"enum": ["long enough", "longer", "lo"]},
    {"enum": ["a" * 9, "ab", "abc"]},
    {"type": "array", "items": {"type": "integer", "minimum": 100}, "minItems": 2},
    {"anyOf": [{"type": "string", "minLength": 9}, {"type": "array", "items": {"type": "null"}, "minItems": 1}]},
    {"anyOf": [object_of(k={"const": "first"}, v={"type": "string"}), object_of(k={"const": "b"})]},
    object_of(a={"anyOf": [object_of(b={"type": "boolean"}), {"type": "null"}]}),
)
MIDDLES: tuple[tuple[Schema, bytes], ...] = (
    ({}, b'{"a": [1.5e'),
    ({}, b'[[{"x\\'),
    (NODE, b'{"name": "a", "next": nu'),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, b'{"swallows the rest'),
)


def after(tokenizer: LLTokenizer, schema: Schema, text: bytes = b"") -> LLMatcher:
    matcher = LLMatcher(tokenizer, json_grammar(schema), log_level=0)
    assert matcher.try_consume_tokens(list(text)) == len(text)
    return matcher


def fewest_bytes(matcher: LLMatcher) -> int:
    """Breadth first over all bytes. Of several bytes after which the same may follow, only one is looked at."""
    states, length = [matcher], 0
    while not any(state.is_accepting() for state in states):
        states = [each for state in states for each in children(state)]
        length += 1
    return length


def children(state: LLMatcher) -> list[LLMatcher]:
    after_mask: dict[bytes, LLMatcher] = {}
    for byte in np.flatnonzero(allowed(state)[:256]).tolist():
        child = state.deep_copy()
        child.consume_token(byte)
        after_mask.setdefault(bytes(child.compute_bitmask()), child)
    return list(after_mask.values())


@pytest.mark.parametrize(("schema", "text"), [*((schema, b"") for schema in SCHEMAS), *MIDDLES])
def test_a_completion_is_the_shortest(schema: Schema, text: bytes) -> None:
    matcher = after(byte_tokenizer(), schema, text)
    completions = Completions(byte_tokenizer())
    found = completions.shortest(matcher, LONGEST)
    assert found is not None and len(found) == fewest_bytes(matcher)
    json.loads(text + bytes(found))
    assert completions.search(matcher, len(found)) is not None
    assert len(found) == 0 or completions.search(matcher, len(found) - 1) is None


@pytest.mark.parametrize(
    ("schema", "begun", "most"),
    [
        ({"pattern": "abc"}, b"", 3),
        ({"pattern": "^.*abc.*$"}, b"xab", 3),
        ({"pattern": r"\.py$"}, b"a file.pyc", 3),
        ({"pattern": r"^\S+@\S+$"}, b"jo", 2),
        ({"pattern": r"^[\w.]+@[\w.]+\.(com|org)$"}, b"jo@do.", 3),
        ({"pattern": r"(foo|bar)\d{3}$"}, b"1", 6),
        ({"pattern": "hello world"}, b"hello ", 11),
        ({"format": "email"}, b"1.1.1.1", 2),
        ({"format": "uri"}, b"", 3),
        ({"format": "uri"}, b"http", 1),
        ({"pattern": r"x\p{L}+@$"}, b"", 3),
    ],
)
def test_a_string_comes_to_what_its_pattern_asks_for(schema: Schema, begun: bytes, most: int) -> None:
    whole = {"type": "string", **schema}
    matcher = after(byte_tokenizer(), whole, b'"' + begun)
    found = Completions(byte_tokenizer()).of_grammar(json_grammar(whole)).search(matcher, most + 1)
    assert found is not None and len(found) <= most + 1 and found[-1] == ord('"')
    assert matcher.validate_tokens(found) == len(found)


class Counted:
    """A matcher that counts what is asked of it and of its copies."""

    def __init__(self, matcher: LLMatcher, calls: Counter[str]) -> None:
        self._matcher, self._calls = matcher, calls

    def deep_copy(self) -> "Counted":
        self._calls["deep_copy"] += 1
        return Counted(self._matcher.deep_copy(), self._calls)

    def __getattr__(self, name: str) -> Any:
        self._calls[name] += 1
        return getattr(self._matcher, name)


CJK = "".join(chr(0x4E00 + place * 7919 % 0x5000) for place in range(4000))


@pytest.mark.parametrize(
    "grammar",
    [
        choice_grammar([CJK]),
        choice_grammar(["a" * 4000]),
        choice_grammar([CJK[:3000] + tail for tail in ("", "a" * 900, CJK[3500:])]),
        json_grammar({"const": CJK[:3998]}),
        json_grammar({"enum": [CJK[:3998], "a" * 3998]}),
    ],
)
def test_what_only_one_text_can_follow_is_searched_in_few_steps(grammar: str) -> None:
    """Each question which tokens have to follow takes as long as these are many: asked for each token, two minutes for 30,000."""
    calls: Counter[str] = Counter()
    matcher = Counted(LLMatcher(byte_tokenizer(), grammar, log_level=0), calls)
    completions = Completions(byte_tokenizer())
    assert completions.search(matcher, 1000) is None and calls["compute_ff_tokens"] + calls["compute_bitmask"] < 300
    assert completions.search(matcher, 13_000) is not None and calls["compute_ff_tokens"] + calls["compute_bitmask"] < 600


def test_an_earlier_completion_goes_on() -> None:
    completions = Completions(byte_tokenizer())
    matcher = after(byte_tokenizer(), NODE, b'{"name": "a')
    earlier = list(b'", "next": null}')
    assert completions.resume(matcher, earlier, len(earlier)) == earlier
    assert completions.resume(matcher, earlier, len(earlier) - 1) is None
    matcher.consume_tokens(list(b'", "'))
    assert completions.resume(matcher, earlier, 13) == earlier[4:]


NAMES = st.sampled_from(["a", "bc", "a longer name", '"'])
LEAVES = st.sampled_from(
    [
        {},
        {"type": "integer"},
        {"type": "number"},
        {"type": "string"},
        {"type": ["boolean", "null"]},
        {"enum": ["one of several", "one", 2.5]},
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "string", "pattern": "^[a-c]+x$"},
        {"type": "string", "pattern": r"\S@\S+\.py$"},
        {"type": "string", "format": "date"},
        {"type": "string", "format": "email"},
        {"type": "integer", "minimum": 1000},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"$ref": "#/$defs/node"},
    ]
)
SCHEMA = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.integers(0, 2))
        | st.builds(
            lambda properties, needed: {"type": "object", "properties": properties, "required": list(properties)[:needed]},
            st.dictionaries(NAMES, inner, max_size=3),
            st.integers(0, 3),
        )
        | st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module", params=["tiny_folder", "bundled"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder: Path = request.getfixturevalue(request.param)
    return Tokenizer(str(folder))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.base, len(tokenizer.base), tokenizer.end_tokens())


@settings(max_examples=120, deadline=None)
@given(root=SCHEMA, seed=st.integers(0, 2**32), times=st.integers(1, 2))
def test_every_answer_is_complete_when_its_shortest_completion_fits(
    compiler: GrammarCompiler, tokenizer: Tokenizer, root: Schema, seed: int, times: int
) -> None:
    """Tokens are drawn evenly from those that the grammar allows: no model ends its answers later."""
    schema = {**root, "$defs": NODE["$defs"]}
    if schema_problem(schema) is not None:
        return
    state = compiler.compile(json_grammar(schema), LONGEST).result()
    shortest = state._completions.shortest(state._matcher, LONGEST)
    assert shortest is not None
    tokens = draw_answer(compiler, schema, max(1, times * len(shortest)), random.Random(seed))
    answer = tokenizer.decode([token for token in tokens if token not in tokenizer.end_tokens()])
    jsonschema.validate(json.loads(answer), schema, cls=jsonschema.Draft202012Validator)


def draw_answer(compiler: GrammarCompiler, schema: Schema, max_tokens: int, rng: random.Random) -> list[int]:
    state = compiler.compile(json_grammar(schema), max_tokens).result()
    tokens: list[int] = []
    complete = False
    while not complete and len(tokens) < max_tokens:
        tokens.append(state.steer(rng.choice(np.flatnonzero(state.allowed_tokens()).tolist()), max_tokens - len(tokens) - 1))
        complete = state.accept(tokens[-1])
    return tokens


def test_a_completion_goes_on_within_a_token_that_the_answer_divides(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the earlier one wrote `]},` at once and the answer writes `]` only; to follow it anew to its end takes 40 ms for 900 tokens."""
    tokenizer = Tokenizer(str(bundled))
    compiler = GrammarCompiler(tokenizer.base, len(tokenizer), tokenizer.end_tokens(), ["</think>"])
    record = object_of(title={"type": "string"}, tags={"type": "array", "items": {"enum": ["old", "sold"]}, "maxItems": 3})
    grammar = json_grammar(object_of(books={"type": "array", "items": record, "minItems": 20}))
    followed = list[int]()
    find = Completions.find
    for seed in range(5):
        state, rng = compiler.compile(grammar, 1500).result(), random.Random(seed)
        monkeypatch.setattr(Completions, "find", lambda self, matcher, limit: followed.append(limit) or find(self, matcher, limit))
        for left in range(1499, 1300, -1):
            sampled = int(rng.choice(np.flatnonzero(state.allowed_tokens()[: len(tokenizer)])))
            token = state.steer(sampled, left)
            assert token == sampled, "there is room for every token"
            state.accept(token)
        monkeypatch.undo()
    assert len(followed) < 10, f"{len(followed)} of 1,000 tokens"


def test_the_mark_of_a_thought_does_not_end_a_string(bundled: Path) -> None:
    tokenizer = Tokenizer(str(bundled))
    guidance = GrammarCompiler(tokenizer.base, len(tokenizer), tokenizer.end_tokens())._tokenizer
    matcher = LLMatcher(guidance, json_grammar(object_of(a={"type": "string"})), log_level=0)
    assert matcher.consume_tokens(guidance.tokenize_str('{"a": "b'))
    found = Completions(guidance, [guidance.tokenize_str("</think>")]).find(matcher, 40)
    assert found is not None and guidance.decode_str(found) == '"}'


def test_a_list_of_calls_is_ended_where_another_may_begin(bundled: Path) -> None:
    """By a token, as of Kimi K2's calls, or by a line break, as of Command R7B's: what closes most would go on forever."""
    tokenizer = Tokenizer(str(bundled)).base
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(mark, special=True, normalized=False) for mark in ("<1>", "<2>")]}
    )
    more, end = tokenizer.convert_tokens_to_ids(["<1>", "<2>"])
    ends = [tokenizer.eos_token_id]
    compiler, unaware = (GrammarCompiler(tokenizer, len(tokenizer), ends, marks) for marks in (["<2>", "\n]<2>"], []))
    for grammar in (f'start: "a" (<[{more}]> "a")* <[{end}]>', f'start: "{{}}" (",\\n{{}}")* "\\n]" <[{end}]>'):
        state = compiler.compile(grammar, 12).result()
        tokens = list[int]()
        while not tokens or not state.accept(tokens[-1]):
            tokens.append(state.steer(int(np.flatnonzero(state.allowed_tokens())[0]), 11 - len(tokens)))
            assert len(tokens) <= 12
        assert unaware.compile(grammar, 12).result(timeout=60), "the search ends where it finds none"
