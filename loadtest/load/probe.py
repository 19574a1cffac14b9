"""What a server can be asked, found out by asking: models, chats, scores, and what it tells about itself. Knows no load.

Any server of OpenAI's wire may stand there. What it lacks is named, and is no error: only one that can do nothing is.
"""

import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

from loadtest import prompts
from loadtest.load.monitor import SOURCES, told
from loadtest.load.transport import BROKEN, Host, encode, pieces
from loadtest.record import SHED, Start, Stream, Wants, score_record

OK = 200
PROBE_TOKENS = 4
PROPS = ("build_info", "model_path", "total_slots")  # of llama-server; the rest of /props is long


class Unusable(Exception):
    """Nothing to measure; the message is for the person who started the run."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """`card` is the model's own, from /v1/models. `missing` says in words what the server does not have."""

    card: dict[str, Any]
    chat: bool = True
    score: bool = True
    wants: Wants = Wants()
    sources: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def quantization(self) -> str:
        """Of the weights, as Litmus and llama-server tell it."""
        told = self.card.get("quantize") or (self.card.get("meta") or {}).get("ftype")
        return told if isinstance(told, str) else "not told"

    @property
    def missing(self) -> list[str]:
        lacks = {
            "it refuses chats: none are sent": not self.chat,
            "no /v1/score: no texts are scored": not self.score,
            "no usage in streams: tokens are not counted, and there is no TPOT": self.chat and not self.wants.usage,
            "no [DONE] at the end of streams: one is whole with its finish_reason": self.chat and not self.wants.done,
            f"none of {', '.join(SOURCES)}: the server is not sampled": not self.sources,
        }
        return [words for words, lacking in lacks.items() if lacking]


def card_of(host: Host, model: str | None) -> dict[str, Any]:
    """The card of `model`, or the first one. Raises `Unusable`."""
    try:
        status, body = host.get("/v1/models")
        cards = json.loads(body)["data"] if status == OK else []
    except BROKEN as error:
        raise Unusable(f"No server answers at {host.url} ({type(error).__name__}). Start one with `make run`, or name one.") from error
    except (ValueError, KeyError, TypeError):
        cards = []
    found = next((card for card in cards if model in (None, card.get("id"))), {"id": model} if model else None)
    if found is None:
        raise Unusable(f"{host.url} shows no model at /v1/models ({status}): name one with --served-model")
    return found


def probe(host: Host, model: str | None, extra: dict[str, Any]) -> Abilities:
    """Asks a chat and a score that count for nothing. Raises `Unusable`."""
    card = card_of(host, model)
    chat, wants = _chat(host, card["id"], extra)
    score = _score(host, card["id"])
    if not chat and not score:
        raise Unusable(f"{host.url} neither chats nor scores with {card['id']!r}")
    sources = tuple(source for source in SOURCES if told(host, source) is not None)
    return Abilities(card, chat, score, wants, sources, _facts(host))


def _chat(host: Host, model: str, extra: dict[str, Any]) -> tuple[bool, Wants]:
    """A stream that is cut short, or refused for now, says nothing about what whole ones have."""
    draw = random.Random("probe")
    body = {**prompts.chat(draw, PROBE_TOKENS), "model": model, **extra}
    stream = Stream(Start("chat", 1, time.perf_counter(), time.perf_counter()))
    try:
        with host.post("/v1/chat/completions", encode(body)) as response:
            if response.status != OK:
                return not 400 <= response.status < 500 or response.status in SHED, Wants()
            for piece in pieces(response):
                stream.feed(piece, time.perf_counter())
    except BROKEN:
        return True, Wants()
    whole = stream.error is None and (stream.done or stream.finish is not None)
    return True, Wants(usage=not whole or stream.usage is not None, done=not whole or stream.done)


def _score(host: Host, model: str) -> bool:
    """Servers of other makes have a /v1/score that means something else."""
    start = Start("score", 1, time.perf_counter(), time.perf_counter())
    try:
        with host.post("/v1/score", encode(prompts.score(random.Random("probe"), 80, model))) as response:
            if response.status != OK:
                return not 400 <= response.status < 500 or response.status in SHED
            return score_record(start, time.perf_counter(), json.loads(response.read()), texts=1).outcome == "ok"
    except (*BROKEN, ValueError):
        return False


def _facts(host: Host) -> dict[str, Any]:
    """Version and weights as vLLM and llama-server tell them."""
    return {**_told(host, "/version", ("version",)), **_told(host, "/props", PROPS)}


def _told(host: Host, route: str, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        status, body = host.get(route)
        said = json.loads(body) if status == OK else {}
    except (*BROKEN, ValueError):
        return {}
    return {name: said[name] for name in names if name in said} if isinstance(said, dict) else {}
