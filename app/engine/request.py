"""What goes into the engine and what comes out of it: frozen values that cross the process border by pickle.

Knows no torch and no wire format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Literal

from app.engine.notices import Interrupted, Loading, Progress, SetBack, Waiting
from app.engine.pages import CacheReport, Space
from app.errors import LitmusError

Finish = Literal["stop", "length"]
Tier = Literal["default", "flex"]
Stage = Literal["idle", "prefill", "decode"]
Pooling = Literal["mean", "last"]
WeightFormat = Literal["float", "bitsandbytes", "gguf"]
MAX_TOP = 20  # likeliest tokens whose log-probabilities a request may ask for, beside each token


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one row samples its next token. Every value is explicit here: defaults are filled in before a request is queued."""

    temperature: float = 1.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0  # of tokens in the prompt or answer: logit / p if positive, * p else (CTRL, arXiv 1909.05858)
    presence_penalty: float = 0.0  # subtracted from the logit of every token in the answer
    frequency_penalty: float = 0.0  # subtracted once for each time the token is in the answer
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    bad_words: tuple[tuple[int, ...], ...] = ()  # sequences of tokens that may not be completed
    min_tokens: int = 0  # the answer has at least this many tokens before an end token may come

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5  # lower temperatures would overflow float32, and sample the likeliest token anyway


@dataclass(frozen=True, slots=True)
class BeamSearchParams:
    """Beam search as `generate(num_beams=beams, do_sample=False)` does it."""

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool = False


@dataclass(frozen=True, slots=True)
class ContrastiveSearchParams:
    """Contrastive search (arXiv 2202.06417, eq. 5): of the `top_k` likeliest tokens the one with the largest
    (1 - penalty_alpha) * probability - penalty_alpha * largest cosine similarity of its hidden state to those before it.
    """

    top_k: int
    penalty_alpha: float


@dataclass(frozen=True, slots=True)
class ThoughtLimit:
    """A thought has at most `tokens` tokens between its marks; then the mark that closes it is written."""

    tokens: int
    open: str
    close: str
    opened: bool  # the prompt has opened the thought
    closing_tokens: tuple[int, ...]  # for each number of letters of `close` that are written, the token that goes on with it


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue `prompt` by at most `max_tokens` tokens. `len(prompt) + max_tokens` has to fit the context: the sender checks it first."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()  # stop strings
    stop_tokens: frozenset[int] = frozenset()  # end the answer, as the model's own end tokens do
    ignore_eos: bool = False  # the model's own end tokens do not end the answer
    logprobs: int | None = None  # return the log-probability of each token, and of this many of the likeliest tokens
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    tier: Tier = "default"
    search: BeamSearchParams | ContrastiveSearchParams | None = None  # None: `sampling` chooses each token
    grammar: str | None = None  # what the answer has to follow, as written by `app.forms.grammar` or `app.forms.tools`
    thought: ThoughtLimit | None = None  # None: a thought ends where the model ends it
    sampled: tuple[int, ...] = ()  # tokens of the answer that another worker has sampled before it died; they are not sent again
    progress: bool = False  # say after each step how far the prompt is read
    adapter: str | None = None  # with which the rows are computed; None: the base alone
    prediction: tuple[int, ...] = ()  # tokens that much of the answer is expected to repeat; they may be drafted, and change nothing
    owner: str | None = None  # whose pages of the cache it takes: the name of a key, or what the client says of its user
    private: bool = False  # only requests of the same owner find in the cache what it has computed, and it finds only theirs

    @property
    def space(self) -> Space:
        """In which it shares the cache with others."""
        return Space(self.adapter, self.owner if self.private else None)

    @property
    def slots_needed(self) -> int:
        """Slots the request occupies at the same time."""
        if isinstance(self.search, BeamSearchParams):
            return self.search.beams
        return self.search.top_k if isinstance(self.search, ContrastiveSearchParams) else 1


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `[start, end)` of a text. Only `[scored_from, end)` are scored; the tokens before are their context. `base`: it is read
    without the job's adapter, and scores nothing.
    """

    start: int
    end: int
    scored_from: int
    base: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Compute the statistics of every token of `tokens` except the first, which nothing predicts; the observer's too if `observe`. With an
    adapter the observer is the base, so that no other model has to be loaded.
    """

    id: str
    tokens: tuple[int, ...]
    windows: tuple[Window, ...]
    observe: bool = False
    tier: Tier = "default"
    top: int = 0  # likeliest tokens that are returned beside each token
    adapter: str | None = None

    @property
    def readings(self) -> tuple[Window, ...]:
        """The windows in the order in which they are read: where the base observes, it reads each window before the adapter does."""
        if self.adapter is None or not self.observe:
            return self.windows
        return tuple(each for window in self.windows for each in (replace(window, base=True), window))


@dataclass(frozen=True, slots=True)
class Embed:
    """Pool the hidden states of `tokens` after the last norm: their mean, or that of the last token. They have to fit the context."""

    id: str
    tokens: tuple[int, ...]
    pooling: Pooling = "mean"
    tier: Tier = "default"
    adapter: str | None = None

    @property
    def windows(self) -> tuple[Window, ...]:
        """All tokens are read in one window; none of them is scored."""
        return (Window(0, len(self.tokens), len(self.tokens)),)

    @property
    def readings(self) -> tuple[Window, ...]:
        return self.windows


@dataclass(frozen=True, slots=True)
class Inspect:
    """Asks for a `Report`."""

    id: str


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


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model's weights are, as far as the setting `quantize` does not say it."""

    format: WeightFormat = "float"  # of the checkpoint
    types: tuple[str, ...] = ()  # of its matrices, such as bfloat16, nf4 or Q4_1, that of most weights first
    parameters: int = 0
    bytes: int = 0  # in memory, after quantization and packing
    inputs_of_16_bits: tuple[str, ...] = ()  # 4-bit layers whose outputs inputs of 8 bits would harm


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    name: str
    path: str
    revision: str  # of the base, a plus, and its own
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a replica serves, for /v1/models and the page."""

    name: str
    context: int
    slots: int
    quantize: str
    dtype: str
    device: str
    observer: str | None
    chat: bool
    fingerprint: str = ""
    revision: str = ""  # the commit on the hub, or a digest of the folder
    observer_revision: str | None = None
    tools: Literal["template", "general"] | None = None  # how tools are told and called: as the chat template writes them, or in plain text
    sampling: SamplingParams = SamplingParams()  # of a request that names no sampling parameter
    weights: Weights = Weights()
    observer_weights: Weights | None = None
    hidden_size: int = 0  # values of a hidden state
    adapters: tuple[AdapterFacts, ...] = ()  # that were loaded with the model
    draft: str | None = None  # the model that proposes tokens
    draft_weights: Weights | None = None
    parent: str | None = None  # the base's name, if these are the facts of an adapter

    @property
    def adapter(self) -> str | None:
        """What jobs of the model name as their adapter."""
        return None if self.parent is None else self.name

    def of(self, adapter: AdapterFacts) -> "Facts":
        """The facts of an adapter of this model, which is its observer."""
        own = {"name": adapter.name, "revision": adapter.revision, "fingerprint": adapter.fingerprint, "adapters": (), "draft": None}
        observer = {"observer": self.name, "observer_revision": self.revision, "observer_weights": self.weights, "draft_weights": None}
        return replace(self, parent=self.name, **own, **observer)  # type: ignore[arg-type]


Job = Generate | Score | Embed
Notice = Waiting | Progress | Interrupted | SetBack | Loading  # says how a job stands, and changes nothing of its result
Event = Delta | Scored | Embedded | Notice | Failed | Report
