"""An upstream's answer, or an event of it, as one of ours: with our id and our name of the model; everything else stays as it is.

Knows no stream and no HTTP.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import UpstreamFailed
from serve.upstream.meter import Meter
from serve.upstream.wires import Wire
from serve.wire.sse import LINE_BREAKS

NO_CHOICES = "the model's server sent an answer without `choices`"


@dataclass(frozen=True, slots=True)
class Naming:
    """The id of the answer, and the model's name here."""

    id: str
    model: str

    def apply(self, answer: Any, whole: bool = True) -> None:
        """`whole` answers of a kind that has an id get one even where the upstream gives none."""
        if not isinstance(answer, dict):
            return
        if "id" in answer or (whole and self.id):
            answer["id"] = self.id
        if "model" in answer or (whole and self.id):
            answer["model"] = self.model


def dump(value: Any) -> bytes:
    """JSON of one line. A half of a character that UTF-8 cannot encode stays escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(LINE_BREAKS).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def load(content: bytes) -> dict[str, Any]:
    """Raises `UpstreamFailed` for what is no JSON object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise UpstreamFailed("the model's server sent something that is not JSON") from None
    if not isinstance(value, dict):
        raise UpstreamFailed("the model's server sent something that is not a JSON object")
    return value


def rename(content: bytes, wire: Wire, naming: Naming, meter: Meter) -> bytes:
    """The body of a whole answer. Raises `UpstreamFailed` for what is no JSON object, and for a chat or a completion without choices."""
    answer = load(content)
    if wire.has_choices and not choices_of(answer):
        raise UpstreamFailed(NO_CHOICES)
    naming.apply(answer, whole=bool(wire.prefix))
    count(answer, wire, meter)
    return dump(answer)


def count(answer: Mapping[str, Any], wire: Wire, meter: Meter) -> None:
    """Note the tokens of an answer or an event, and why it ended."""
    inner = answer.get(wire.inner) if wire.inner else None
    for part in (answer, inner, answer.get("delta")):
        if isinstance(part, dict):
            meter.usage(part.get("usage"))
            meter.reason(part.get("stop_reason") or part.get("status"))
    for choice in choices_of(answer):
        meter.reason(choice.get("finish_reason"))


def choices_of(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def has_text(event: Mapping[str, Any]) -> bool:
    """Whether an event carries a part of the answer, and not only a role, a reason or counts."""
    kind = event.get("type")
    if isinstance(kind, str):
        return kind.endswith((".delta", "_block_delta"))
    return any(choice.get("text") or _fills(choice.get("delta")) for choice in choices_of(event))


def _fills(delta: Any) -> bool:
    return isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")
