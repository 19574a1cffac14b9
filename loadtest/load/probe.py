"""Finds out by requests what a server supports: models, chats, scores, and what it reports about itself. Knows no load.

Any server with OpenAI's API will do. A missing feature is named and is no error; only a server that neither chats nor scores is refused.
"""

import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

from loadtest import prompts
from loadtest.load.monitor import SOURCES, read_source
from loadtest.load.transport import CONNECTION_ERRORS, Host, body_chunks, encode
from loadtest.record import SHED_STATUSES, Expectations, Start, Stream, score_record

OK = 200
PROBE_TOKENS = 4
PROBE_WORDS = 80  # length of the text that is scored
PROPS_FIELDS = ("build_info", "model_path", "total_slots")  # those kept of llama-server's long /props


class UnusableServer(Exception):
    """There is nothing to measure; the message is for the person who started the run."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server supports. `card`: the model's entry in /v1/models; `sources`: routes to sample; `facts`: its version and weights."""

    card: dict[str, Any]
    can_chat: bool = True
    can_score: bool = True
    expected: Expectations = Expectations()
    sources: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def quantization(self) -> str:
        """Of the weights, as Litmus and llama-server report it in the model card; "not told" for other servers."""
        value, weights = self.card.get("quantize") or (self.card.get("meta") or {}).get("ftype"), self.card.get("weights")
        if value == "none" and isinstance(weights, dict) and weights["format"] != "float":  # the checkpoint was quantized before
            value = f"{weights['format']} {', '.join(weights['types'])}"
        return value if isinstance(value, str) else "not told"  # a value in recorded runs

    @property
    def missing(self) -> list[str]:
        """A message for each feature that the server lacks."""
        lacks = {
            "the server refuses chats: none are sent": not self.can_chat,
            "the server has no /v1/score: no texts are scored": not self.can_score,
            "no usage in streams: tokens are not counted, and there is no TPOT": self.can_chat and not self.expected.has_usage,
            "no [DONE] at the end of streams: a finish_reason ends them instead": self.can_chat and not self.expected.has_done,
            f"none of {', '.join(SOURCES)}: the server is not sampled": not self.sources,
        }
        return [message for message, lacking in lacks.items() if lacking]


def card_of(host: Host, model: str | None) -> dict[str, Any]:
    """The card of `model`, or the first one without a name. Raises `UnusableServer`."""
    try:
        status, body = host.get("/v1/models")
        cards = json.loads(body)["data"] if status == OK else []
    except CONNECTION_ERRORS as error:
        raise UnusableServer(
            f"No server answers at {host.url} ({type(error).__name__}). "
            "Start one with `make run`, or give another with --host (make: URL=...)."
        ) from error
    except (ValueError, KeyError, TypeError):
        cards = []
    card = next((card for card in cards if model in (None, card.get("id"))), {"id": model} if model else None)
    if card is None:
        raise UnusableServer(f"{host.url} lists no model at /v1/models (status {status}): name one with --served-model")
    return card


def probe(host: Host, model: str | None, extra: dict[str, Any]) -> Capabilities:
    """Sends one chat (with the body fields `extra`) and one score, neither of which is counted. Raises `UnusableServer`."""
    card = card_of(host, model)
    can_chat, expected = _probe_chat(host, card["id"], extra)
    can_score = _probe_score(host, card["id"])
    if not can_chat and not can_score:
        raise UnusableServer(f"{host.url} supports neither chats nor scores with the model {card['id']!r}")
    sources = tuple(source for source in SOURCES if read_source(host, source) is not None)
    return Capabilities(card, can_chat, can_score, expected, sources, _server_facts(host))


def _probe_chat(host: Host, model: str, extra: dict[str, Any]) -> tuple[bool, Expectations]:
    """Whether the server chats, and what its streams contain. A stream that was cut short or shed does not show the latter."""
    rng = random.Random("probe")
    body = {**prompts.short_chat_body(rng, PROBE_TOKENS), "model": model, **extra}
    stream = Stream(Start("chat", 1, time.perf_counter(), time.perf_counter()))
    try:
        with host.post("/v1/chat/completions", encode(body)) as response:
            if response.status != OK:
                return not _is_unsupported(response.status), Expectations()
            for chunk in body_chunks(response):
                stream.feed(chunk, time.perf_counter())
    except CONNECTION_ERRORS:
        return True, Expectations()
    complete = stream.error is None and (stream.done or stream.finish_reason is not None)
    return True, Expectations(has_usage=not complete or stream.usage is not None, has_done=not complete or stream.done)


def _probe_score(host: Host, model: str) -> bool:
    """Reads the response too, because other servers have a /v1/score with another meaning."""
    start = Start("score", 1, time.perf_counter(), time.perf_counter())
    try:
        with host.post("/v1/score", encode(prompts.score_body(random.Random("probe"), PROBE_WORDS, model))) as response:
            if response.status != OK:
                return not _is_unsupported(response.status)
            return score_record(start, time.perf_counter(), json.loads(response.read()), texts=1).outcome == "ok"
    except (*CONNECTION_ERRORS, ValueError):
        return False


def _is_unsupported(status: int) -> bool:
    """4xx: the server will refuse every such request; except 429, by which it refuses for now."""
    return 400 <= status < 500 and status not in SHED_STATUSES


def _server_facts(host: Host) -> dict[str, Any]:
    """Version and weights as vLLM and llama-server report them."""
    return {**_fields_of(host, "/version", ("version",)), **_fields_of(host, "/props", PROPS_FIELDS)}


def _fields_of(host: Host, route: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the named fields that are in the JSON object at `route`."""
    try:
        status, raw = host.get(route)
        body = json.loads(raw) if status == OK else {}
    except (*CONNECTION_ERRORS, ValueError):
        return {}
    return {name: body[name] for name in names if name in body} if isinstance(body, dict) else {}
