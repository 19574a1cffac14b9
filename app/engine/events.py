"""What comes out of the engine: frozen values that cross the process border by pickle, each with the id of its request.

Knows no torch and no wire format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Literal

from app.engine.notices import Interrupted, Loading, Progress, SetBack, Waiting
from app.engine.pages import CacheReport
from app.errors import LitmusError

Finish = Literal["stop", "length"]
Stage = Literal["idle", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Statistics of scored tokens: each column has one entry a token. Logarithms are natural.

    `mean` and `variance` are those of log p under the model itself, so `-mean` is the entropy. `cross_entropy` is that of the
    observer's distribution with the performer's, `observed` the observer's log-probability of the token; both are empty when the
    observer was not asked. `top` has the likeliest tokens with their log-probabilities, likeliest first; empty when none were asked for.
    """

    logprob: tuple[float, ...] = ()
    rank: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()
    cross_entropy: tuple[float, ...] = ()
    observed: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


def slice_columns(columns: Columns, first: int, last: int) -> Columns:
    """The statistics of the scored tokens `[first, last)`."""
    return Columns(*(getattr(columns, field.name)[first:last] for field in fields(Columns)))


def concatenate_columns(parts: Sequence[Columns]) -> Columns:
    return Columns(*(tuple(chain.from_iterable(getattr(part, field.name) for part in parts)) for field in fields(Columns)))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of a token's probability under the model itself (before temperature, penalties and filters). `top` has the
    likeliest tokens with theirs, likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a generation. `tokens` were sampled since the last delta; only the last delta has a `finish`."""

    id: str
    text: str
    tokens: tuple[int, ...]
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # of the sampled tokens, if requested
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # in the first delta, if requested: of the prompt's tokens except the first
    cached: int = 0  # in the first delta: prompt tokens whose keys and values did not have to be computed
    stop_string: str | None = None  # in the last delta: the stop string that ended a sampled answer
    prefill_s: float = 0.0  # in the first delta: seconds from the slot to the first token
    texts: tuple[str, ...] = ()  # what each of several tokens adds to `text`; empty for one token, and for the answer of a search
    drafted: int = 0  # tokens that were drafted and run in the step
    accepted: int = 0  # how many of them are in `tokens`

    def parts(self) -> "list[Delta]":
        """The same as deltas of one token each, where the text of each is known."""
        if not self.texts:
            return [self]
        last, logprobs = len(self.texts) - 1, self.logprobs or (None,) * len(self.texts)
        return [
            replace(
                self,
                text=text,
                tokens=(token,),
                texts=(),
                logprobs=() if logprob is None else (logprob,),
                finish=self.finish if place == last else None,
                stop_string=self.stop_string if place == last else None,
                drafted=0 if place else self.drafted,
                accepted=0 if place else self.accepted,
            )
            for place, (text, token, logprob) in enumerate(zip(self.texts, self.tokens, logprobs, strict=True))
        ]


@dataclass(frozen=True, slots=True)
class Scored:
    id: str
    columns: Columns


@dataclass(frozen=True, slots=True)
class Embedded:
    id: str
    vector: bytes  # of length 1; float32, little-endian


@dataclass(frozen=True, slots=True)
class Failed:
    id: str
    error: LitmusError


@dataclass(frozen=True, slots=True)
class SlotReport:
    """What a slot holds."""

    slot: int
    stage: Stage
    request: str | None  # the request's id
    prompt_tokens: int
    cached_tokens: int  # tokens whose keys and values are in the cache: a request that begins with them can reuse them
    generated_tokens: int
    drafted_tokens: int = 0  # since the request got the slot
    accepted_tokens: int = 0  # drafted ones that are in the answer


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a request got its slot, or lost it. `at_s` is Unix time."""

    at_s: float
    request: str
    slot: int
    reason: str
    waited_s: float
    reused_tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Report:
    """The state of the engine. `decisions` are the latest ones, at most 100, newest last."""

    id: str
    slots: tuple[SlotReport, ...]
    waiting: tuple[Waiting, ...]
    texts: int  # being scored or embedded, or waiting to be
    decisions: tuple[Decision, ...]
    cache: CacheReport


Notice = Waiting | Progress | Interrupted | SetBack | Loading  # says how a job stands, and changes nothing of its result
Event = Delta | Scored | Embedded | Notice | Failed | Report
