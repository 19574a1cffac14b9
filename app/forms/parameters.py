"""Arguments of a tool call that a template writes one by one instead of as one JSON object, as Qwen3-Coder (XML) and Llama 4 (Python) do.

    learn_parameters(one, two, none) -> ParameterFormat | None    from what follows the name in calls with one, two and no arguments
    ParameterFormat.rules(...), .read(...)                        the grammar of a tool's arguments, and the way back to JSON

In XML a text stands between its marks as it is; every other value is JSON. Knows no template and no tokenizer.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.forms.grammar import Schema, schema_term, subschemas

KEY = re.compile(r"[\w.-]+")
QUOTES = ("'", '"')
PLAIN = frozenset({"type", "title", "description", "default", "examples"})  # a string with no other keywords may be any text
OBJECT = PLAIN | {"properties", "required", "additionalProperties", "$defs", "definitions", "$schema"}
DEFINITIONS = ("$defs", "definitions")
Probe = tuple[str, tuple[tuple[str, str], ...]]  # a rendered call from after its name, and the arguments in it


@dataclass(frozen=True, slots=True)
class ParameterFormat:
    """`before_key` KEY `before_value` VALUE `after_value`, with `between` two of them. `quoted`: texts are written as JSON, too."""

    before_key: str
    before_value: str
    after_value: str
    between: str
    quoted: bool

    def write(self, arguments: Sequence[tuple[str, str]]) -> str:
        """The arguments; values as they are to stand in the text."""
        return self.between.join(f"{self.before_key}{key}{self.before_value}{value}{self.after_value}" for key, value in arguments)

    def is_raw(self, schema: Any) -> bool:
        """Whether a value of this schema stands in the text as it is."""
        return not self.quoted and isinstance(schema, dict) and schema.get("type") == "string" and set(schema) <= PLAIN

    def rules(self, name: str, schema: Schema, term: Callable[[str], str], raw: str) -> list[str]:
        """The rule `name` for the arguments of one tool, and those that it needs. `term` writes fixed text, `raw` is the rule of a text up
        to `after_value`, with it.
        """
        properties: dict[str, Any] = dict(schema.get("properties", {}))
        definitions = {key: schema[key] for key in DEFINITIONS if key in schema}
        rules = []
        for index, (key, inner) in enumerate(properties.items()):
            value = raw if self.is_raw(inner) else f"{name}_v{index} {term(self.after_value)}"
            rules.append(f"{name}_p{index}: {term(self.before_key + key + self.before_value)} {value}")
            if not self.is_raw(inner):
                rules.append(f"{name}_v{index}: {schema_term({**_object(inner), **definitions})}")
        for index, key in enumerate(properties):
            optional = key not in schema.get("required", ())
            more = f"{term(self.between)} {name}_p{index}"
            rules.append(f"{name}_m{index}: {f'({more})?' if optional else more} {name}_m{index + 1}")
            rules.append(f"{name}_f{index}: {name}_p{index} {name}_m{index + 1}" + (f" | {name}_f{index + 1}" if optional else ""))
        return [f"{name}: {name}_f0", *rules, f'{name}_m{len(properties)}: ""', f'{name}_f{len(properties)}: ""']

    def read(self, text: str, is_first: bool, schema: Schema) -> tuple[str, str, int] | None:
        """Key, value as JSON and end of the argument at the beginning of the text; None if there is none, or not yet all of it."""
        before = ("" if is_first else self.between) + self.before_key
        key = KEY.match(text, len(before)) if text.startswith(before) else None
        if key is None or not text.startswith(self.before_value, key.end()):
            return None
        start = key.end() + len(self.before_value)
        if self.is_raw(schema.get("properties", {}).get(key[0])):
            end = text.find(self.after_value, start)
            return None if end < 0 else (key[0], json.dumps(text[start:end], ensure_ascii=False), end + len(self.after_value))
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            return None
        follows = text[end:]
        is_whole = follows.startswith(self.after_value) if self.after_value else follows[:1] not in ("", *"0123456789.eE+-")
        return (key[0], text[start:end], end + len(self.after_value)) if is_whole else None


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


def learn_parameters(one: Probe, two: Probe, none: str) -> tuple[ParameterFormat, str, str] | None:
    """The format, and what stands before and after all arguments; None if they are not written one by one.

    Where the text around the arguments may be cut at several places, the last one before a `<` is taken.
    """
    places = _places(*one)
    if places is None:
        return None
    before, middle, after = places
    quoted = middle[-1:] in QUOTES and middle[-1:] == after[:1]
    if quoted:
        middle, after = middle[:-1], after[1:]
    if quoted and middle != "=":
        return None
    for cut in range(len(none), -1, -1):
        start, end = none[:cut], none[cut:]
        if before.startswith(start) and after.endswith(end) and not start.endswith("<"):
            format = ParameterFormat(before[len(start) :], middle, after[: len(after) - len(end)], "", quoted)
            between = _between(format, start, end, two)
            if between is not None and middle and (format.after_value or middle == "="):
                return replace(format, between=between, quoted=quoted or not format.after_value), start, end
    return None


def _between(format: ParameterFormat, start: str, end: str, two: Probe) -> str | None:
    text, ((key_1, value_1), (key_2, value_2)) = two[0], two[1]
    quote = next((letter for letter in QUOTES if format.quoted and letter + value_1 + letter in text), "")
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


def _object(schema: Any) -> Mapping[str, Any]:
    return schema if isinstance(schema, dict) else {} if schema is True else {"not": {}}
