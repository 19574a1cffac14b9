"""What goes into the engine: frozen values that cross the process border by pickle. What comes out is in `events`.

Knows no torch and no wire format.
"""

from dataclasses import dataclass, replace
from typing import Literal

from app.engine.pages import Space

Tier = Literal["default", "flex"]
Pooling = Literal["mean", "last"]


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
    min_tokens: int = 0  # the answer has at least this many tokens before an end token or a stop string may come
    allowed_tokens: tuple[int, ...] = ()  # no other one may come, end tokens included; empty: all may

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
    begun: str = ""  # the end of the prompt, in which a mark has begun


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue `prompt` by at most `max_tokens` tokens. Its `room` has to fit the context: the sender checks it first."""

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
    unlimited: bool = False  # nobody asked for `max_tokens`: it is what the context leaves, and less in a worker whose context is shorter

    @property
    def space(self) -> Space:
        """In which it shares the cache with others."""
        return Space(self.adapter, self.owner if self.private else None)

    @property
    def room(self) -> int:
        """Tokens that the cache may have to hold. The last token of an answer is not read again; a search may write it."""
        return len(self.prompt) + self.max_tokens - (self.search is None)

    def within(self, context: int) -> "Generate":
        """With fewer tokens, if nobody asked for them and the context is shorter than that of the worker which the job was made for."""
        most = context - len(self.prompt)
        return replace(self, max_tokens=most) if self.unlimited and len(self.sampled) < most < self.max_tokens else self

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


Job = Generate | Score | Embed
