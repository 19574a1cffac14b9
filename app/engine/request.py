"""What goes into the engine and what comes out of it: frozen values that cross the process border by pickle.

Knows no torch and no wire format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Literal

from app.errors import LitmusError

Finish = Literal["stop", "length"]
Tier = Literal["default", "flex"]
Stage = Literal["idle", "prefill", "decode"]
MAX_TOP = 20  # likeliest tokens that may be asked for beside each token


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row draws its next token. Every value is explicit here: defaults are filled in before a request is queued."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0  # of what stands in prompt or answer: logit / p if positive, * p else (CTRL, arXiv 1909.05858)
    presence_penalty: float = 0.0  # taken from the logit of what stands in the answer
    frequency_penalty: float = 0.0  # taken from it once for each time it stands there
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of tokens that may not be completed
    min_tokens: int = 0  # the answer does not end by an end token before it has this many

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5  # what is colder would overflow float32 and draws the likeliest token anyway


@dataclass(frozen=True, slots=True)
class Beams:
    """Beam search as `generate(num_beams=beams, do_sample=False)` does it."""

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool = False


@dataclass(frozen=True, slots=True)
class Contrast:
    """Contrastive search (arXiv 2202.06417, eq. 5): of the `top_k` likeliest tokens the one with the largest
    (1 - penalty_alpha) * probability - penalty_alpha * largest cosine similarity of its hidden state to those before it.
    """

    top_k: int
    penalty_alpha: float


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue `prompt` by at most `max_tokens` tokens; `len(prompt) + max_tokens` fits the context (checked by the sender)."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()  # end the answer as the model's own end tokens do
    ignore_eos: bool = False  # the model's own end tokens do not
    logprobs: int | None = None  # log-probability of each token and of this many likeliest ones
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    tier: Tier = "default"
    search: Beams | Contrast | None = None  # None: each token is drawn by `sampling`
    grammar: str | None = None  # what the answer has to be, as `app.forms.grammar` or `app.forms.tools` writes it

    @property
    def width(self) -> int:
        """Slots it needs at once."""
        if isinstance(self.search, Beams):
            return self.search.beams
        return self.search.top_k if isinstance(self.search, Contrast) else 1


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `[start, end)` of a text, of which `[keep, end)` give their statistics: the ones before are only context."""

    start: int
    end: int
    keep: int


@dataclass(frozen=True, slots=True)
class Score:
    """Statistics of every token of `tokens` but the first, which nothing predicts; with the observer's if `observe`."""

    id: str
    tokens: tuple[int, ...]
    windows: tuple[Window, ...]
    observe: bool = False
    tier: Tier = "default"


@dataclass(frozen=True, slots=True)
class Inspect:
    """Asks for a `Report`."""

    id: str


@dataclass(frozen=True, slots=True)
class Columns:
    """One entry a scored token, natural logarithms. `mean` and `variance` are those of log p under the model itself, so
    `-mean` is the entropy. Where the observer was asked: `cross_entropy` is that of its distribution under the performer's,
    `observed` its own log-probability of the token.
    """

    logprob: tuple[float, ...] = ()
    rank: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()
    cross_entropy: tuple[float, ...] = ()
    observed: tuple[float, ...] = ()


def joined(parts: Sequence[Columns]) -> Columns:
    """One after the other."""
    return Columns(*(tuple(chain.from_iterable(getattr(part, field.name) for part in parts)) for field in fields(Columns)))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of a token's probability under the model itself (before temperature, penalties and filters), and of the
    likeliest ones, falling.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a generation. `tokens` were sampled since the last delta; the last delta has a `finish`."""

    id: str
    text: str
    tokens: int
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # of `tokens`, where asked for
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # of the prompt's tokens but the first; all of them in the first delta
    cached: int = 0  # prompt tokens that did not have to be computed; in the first delta


@dataclass(frozen=True, slots=True)
class Scored:
    id: str
    columns: Columns


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that has no slot yet. `position` 1 is the next; `wait_s` is expected from the recent past, None while that is unknown."""

    id: str
    position: int
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Failed:
    id: str
    error: LitmusError


@dataclass(frozen=True, slots=True)
class Residence:
    """What a slot holds."""

    slot: int
    stage: Stage
    request: str | None
    prompt_tokens: int
    cached_tokens: int  # keys and values in the cache, which a request with the same beginning can use
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a request got the slot it got. `at_s` is Unix time."""

    at_s: float
    request: str
    slot: int
    reason: str
    waited_s: float
    reused_tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Report:
    """The engine as it stands; `decisions` are the last 100, newest last."""

    id: str
    slots: tuple[Residence, ...]
    waiting: tuple[Waiting, ...]
    texts: int  # being scored or waiting to be
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is being served, for /v1/models and the page."""

    name: str
    context: int
    slots: int
    quantize: str
    dtype: str
    device: str
    observer: str | None
    chat: bool
    fingerprint: str = ""
    revision: str = ""  # the hub's commit, or a digest of the folder
    observer_revision: str | None = None
    tools: bool = False  # its chat template has a place for them


Job = Generate | Score
Event = Delta | Scored | Waiting | Failed | Report
