"""Arguments of a tool call that a template writes one by one instead of as one JSON object, as Qwen3-Coder (XML) and Llama 4 (Python) do.

    learn_parameters(one, two, none) -> ParameterFormat | None    from what follows the name in calls with one, two and no arguments
    ParameterFormat.rules(...), .read(...)                        the grammar of a tool's arguments, and the way back to JSON

In XML a text stands between its marks as it is; every other value is JSON. In Python a text stands in the template's quotation marks, and
a truth value or None as the template writes them; every other value is JSON. Knows no template and no tokenizer.
"""

import json
import re
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.forms.grammar import Schema, mapped, pointer_token, schema_term, subschemas

KEY = re.compile(r"[\w.-]+")
WORD = re.compile(r"[^<>\[\]{}|\\'\x00-\x1f]+")  # stands in any form as it is
QUOTES = ("'", '"')
APOSTROPHES = re.compile(r"'(?:[^'\\\n]|\\.)*'")
APOSTROPHES_TERM = r"""/'([^'\\\x00-\x1f\x7f]|\\[nrt'"\\])*'/"""
LITERALS = {"True": "true", "False": "false", "None": "null"}  # Python's, and JSON's
PLAIN = frozenset({"type", "title", "description", "default", "examples"})  # a string with no other keywords may be any text
OBJECT = PLAIN | {"properties", "required", "additionalProperties", "$defs", "definitions", "$schema"}
DEFINITIONS = ("$defs", "definitions")
Probe = tuple[str, tuple[tuple[str, str], ...]]  # a rendered call from after its name, and the arguments in it


@dataclass(frozen=True, slots=True)
class ParameterFormat:
    """`before_key` KEY `before_value` VALUE `after_value`, with `between` two of them. Values that are no text may have another mark before
    them than `before_value`, and none after them.
    """

    before_key: str
    before_value: str
    after_value: str
    between: str
    quote: str = ""  # around a text; empty: a text stands as it is
    python: bool = False  # True, False and None instead of true, false and null
    before_other: str | None = None  # None: `before_value` stands before all values
    after_other: str | None = None  # None: `after_value` stands after all values

    @property
    def fixed_texts(self) -> tuple[str, ...]:
        return (self.before_key, self.before_value, self.after_value, self.between, self.before_other or "")

    @property
    def closing_mark(self) -> str:
        """What ends a text."""
        return self.quote if self.quote == "'" else self.after_value

    def write(self, arguments: Sequence[tuple[str, str]]) -> str:
        """The arguments; values as they are to stand in the text."""
        return self.between.join(f"{self.before_key}{key}{self.before_value}{value}{self.after_value}" for key, value in arguments)

    def is_raw(self, schema: Any) -> bool:
        """Whether a value of this schema stands in the text as it is."""
        return not self.quote and (_is_any_text(schema) or bool(_words(schema)))

    def before(self, schema: Any) -> str:
        """What stands between a key and a value of this schema."""
        return self.before_value if self.before_other is None or self.is_raw(schema) else self.before_other

    def after(self, schema: Any) -> str:
        """What stands after a value of this schema."""
        return self.after_value if self.after_other is None or self.is_raw(schema) else self.after_other

    def _value(self, schema: Any, definitions: Schema) -> str:
        """The rule of a value that is not free text up to its end."""
        if self.quote == "'" and _is_any_text(schema):
            return APOSTROPHES_TERM
        if self.quote == "'" and (words := _words(schema)):
            return " | ".join(json.dumps(f"'{word}'", ensure_ascii=False) for word in words)
        literals = {"boolean": ("True", "False"), "null": ("None",)}.get(str(_object(schema).get("type")), ())
        if self.python and literals and set(schema) <= PLAIN:
            return " | ".join(json.dumps(literal) for literal in literals)
        return schema_term({**_object(schema), **definitions})

    def rules(self, name: str, schema: Schema, term: Callable[[str], str], raw: str) -> list[str]:
        """The rule `name` for the arguments of one tool, and those that it needs. `term` writes fixed text, `raw` is the rule of a text up
        to `after_value`, with it.
        """
        properties: dict[str, Any] = dict(schema.get("properties", {}))
        definitions = {key: schema[key] for key in DEFINITIONS if key in schema}
        rules = []
        for index, (key, inner) in enumerate(properties.items()):
            words = [] if self.quote else _words(inner)
            if words:
                value = f"({' | '.join(term(word + self.after_value) for word in words)})"
            else:
                value = raw if self.is_raw(inner) else f"{name}_v{index} {term(self.after(inner))}"
            before = self.before_key + key + self.before(inner)
            rules.append(f"{name}_p{index}: {term(before)} {value}")
            rules.append(f"{name}_n{index}: {term(self.between + before)} {value}")  # one text, so that no other goes on from a part of it
            if not self.is_raw(inner):
                rules.append(f"{name}_v{index}: {self._value(inner, definitions)}")
        for index, key in enumerate(properties):
            optional = key not in schema.get("required", ())
            more = f"{name}_n{index}"
            rules.append(f"{name}_m{index}: {more}{'?' * optional} {name}_m{index + 1}")
            rules.append(f"{name}_f{index}: {name}_p{index} {name}_m{index + 1}" + (f" | {name}_f{index + 1}" if optional else ""))
        return [f"{name}: {name}_f0", *rules, f'{name}_m{len(properties)}: ""', f'{name}_f{len(properties)}: ""']

    def read(self, text: str, is_first: bool, schema: Schema) -> tuple[str, str, int] | None:
        """Key, value as JSON and end of the argument at the beginning of the text; None if there is none, or not yet all of it."""
        before = ("" if is_first else self.between) + self.before_key
        key = KEY.match(text, len(before)) if text.startswith(before) else None
        inner = None if key is None else schema.get("properties", {}).get(key[0])
        if key is None or not text.startswith(self.before(inner), key.end()):
            return None
        start = key.end() + len(self.before(inner))
        if self.is_raw(inner):
            end = text.find(self.after_value, start)
            return None if end < 0 else (key[0], json.dumps(text[start:end], ensure_ascii=False), end + len(self.after_value))
        value = _read_value(text, start)
        if value is None:
            return None
        follows, after = text[value[1] :], self.after(inner)
        is_whole = follows.startswith(after) if after else follows[:1] not in ("", *"0123456789.eE+-")
        return (key[0], value[0], value[1] + len(after)) if is_whole else None


def parameters_problem(schema: Schema) -> str | None:
    """Why arguments of this schema cannot be written one by one, if they cannot."""
    others = sorted(set(schema) - OBJECT)
    if others:
        return f"the model's chat template writes arguments one by one, which leaves no place for {others[0]} beside properties"
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or any(KEY.fullmatch(key) is None for key in properties):
        return "the model's chat template writes arguments by names of letters, digits, '_', '-' and '.' only"
    if any(name not in properties for name in schema.get("required", ())):
        return "an argument is required that properties does not name"
    references = [inner["$ref"] for _, inner in subschemas(schema) if isinstance(inner.get("$ref"), str)]
    if any(not reference.startswith(tuple(f"#/{key}/" for key in DEFINITIONS)) for reference in references):
        return "a $ref to another place than $defs"
    return None


def written_one_by_one(schema: Schema) -> tuple[Schema, list[str]]:
    """The schema without what leaves no place for arguments one by one, as far as that makes it wider, and pointers of what it lacks."""
    left_out = [f"/{pointer_token(key)}" for key in schema if key not in OBJECT]
    kept = {key: value for key, value in schema.items() if key in OBJECT}
    parts = (inner.get("properties", {}) for key in schema if key not in OBJECT for _, inner in subschemas({"anyOf": schema[key]}))
    named = [*schema.get("required", ()), *(name for properties in parts for name in properties)]
    properties = schema.get("properties", {})
    added: Schema = {name: {} for name in named if name not in properties}
    if added:
        kept["properties"] = {**properties, **added}

    def known(pointer: str, inner: Schema) -> Schema:
        if "$ref" not in inner or inner["$ref"].startswith(tuple(f"#/{key}/" for key in DEFINITIONS)):
            return inner
        left_out.append(f"{pointer}/$ref")
        return {key: value for key, value in inner.items() if key != "$ref"}

    return mapped(kept, known), left_out


def learn_parameters(one: Probe, two: Probe, none: str) -> tuple[ParameterFormat, str, str] | None:
    """The format, and what stands before and after all arguments; None if they are not written one by one.

    Where the text around the arguments may be cut at several places, the last one before a `<` is taken.
    """
    places = _places(*one)
    if places is None:
        return None
    before, middle, after = places
    before_quote = middle
    quoted = middle[-1:] in QUOTES and middle[-1:] == after[:1]
    if quoted:
        middle, after = middle[:-1], after[1:]
    if quoted and middle != "=":
        return None
    quote = before_quote[-1:] if quoted else ""
    for cut in range(len(none), -1, -1):
        start, end = none[:cut], none[cut:]
        if before.startswith(start) and after.endswith(end) and not start.endswith("<"):
            format = ParameterFormat(before[len(start) :], middle, after[: len(after) - len(end)], "", quote)
            between = _between(format, start, end, two)
            if between is not None and middle and (format.after_value or middle == "="):
                return replace(format, between=between, quote=quote or '"' * (not format.after_value)), start, end
    return None


def with_other_values(format: ParameterFormat, written: tuple[str, str], end: str) -> ParameterFormat | None:
    """The format, completed by how the template writes `{"depth": 7}` and `{"depth": True}`, up to the `end` of the call; None if it writes
    these otherwise than a format can.
    """
    number, truth = written
    format = replace(format, python=bool(format.quote) and "True" in truth)
    if format.quote:
        return format
    before = f"{format.before_key}depth"
    is_mark = bool(format.after_value.strip("\\\"'"))  # a mere quotation mark is JSON's, and would be escaped
    afters = (format.after_value, "") if is_mark else (format.after_value,)
    after = next((after for after in afters if number.endswith(f"7{after}{end}")), None)
    if after is None or not number.startswith(before):
        return None
    other = number.removeprefix(before).removesuffix(f"7{after}{end}")
    is_told_apart = bool(other) and not other.startswith(format.before_value) and not format.before_value.startswith(other)
    is_told_apart |= after != format.after_value  # by what the arguments' schemas say, as Gemma 4's
    if truth.lower() != f"{before}{other}true{after}{end}".lower() or not (is_told_apart or other == format.before_value):
        return None
    return replace(format, before_other=other if is_told_apart else None, after_other=None if after == format.after_value else after)


def _between(format: ParameterFormat, start: str, end: str, two: Probe) -> str | None:
    text, ((key_1, value_1), (key_2, value_2)) = two[0], two[1]
    quote = format.quote
    first = start + format.write([(key_1, quote + value_1 + quote)])
    second = format.write([(key_2, quote + value_2 + quote)]) + end
    inner = len(text) - len(first) - len(second)
    return text[len(first) : len(first) + inner] if inner >= 0 and text.startswith(first) and text.endswith(second) else None


def _places(text: str, arguments: tuple[tuple[str, str], ...]) -> tuple[str, str, str] | None:
    """What stands before the key, between it and the value, and after the value."""
    ((key, value),) = arguments
    before, found, rest = text.partition(key)
    middle, found_value, after = rest.partition(value)
    return (before, middle, after) if found and found_value else None


def _read_value(text: str, start: int) -> tuple[str, int] | None:
    """A value as JSON and its end, if the text holds all of it."""
    if quoted := APOSTROPHES.match(text, start):
        return json.dumps(literal_eval(quoted[0]), ensure_ascii=False), quoted.end()
    for python, plain in LITERALS.items():
        if text.startswith(python, start):
            return plain, start + len(python)
    try:
        return text[start : (end := json.JSONDecoder().raw_decode(text, start)[1])], end
    except ValueError:
        return None


def _is_any_text(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string" and set(schema) <= PLAIN


def _words(schema: Any) -> list[str]:
    """The texts that a schema allows, if these are words that any form writes as they are; else none."""
    if not isinstance(schema, dict) or not set(schema) <= PLAIN | {"enum", "const"} or schema.get("type", "string") != "string":
        return []
    words = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return words if all(isinstance(word, str) and WORD.fullmatch(word) for word in words) and not {"enum", "const"} <= set(schema) else []


def _object(schema: Any) -> Mapping[str, Any]:
    return schema if isinstance(schema, dict) else {} if schema is True else {"not": {}}
