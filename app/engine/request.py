"""What goes into the engine and what comes out of it: frozen values that cross the process border by pickle.

Knows no torch and no wire format.
"""

from dataclasses import dataclass
from typing import Literal

from app.errors import LitmusError

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row draws its next token. Every value is explicit here: defaults are filled in before a request is queued."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5  # what is colder would overflow float32 and draws the likeliest token anyway


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue `prompt` by at most `max_tokens` tokens; `len(prompt) + max_tokens` fits the context (checked by the sender)."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()


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


@dataclass(frozen=True, slots=True)
class Columns:
    """One entry a scored token, natural logarithms. `mean` and `variance` are those of log p under the model itself, so
    `-mean` is the entropy. `cross_entropy` is that of the observer's distribution under the performer's, where asked for.
    """

    logprob: tuple[float, ...] = ()
    rank: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    variance: tuple[float, ...] = ()
    cross_entropy: tuple[float, ...] = ()

    def __add__(self, other: "Columns") -> "Columns":
        return Columns(
            self.logprob + other.logprob,
            self.rank + other.rank,
            self.mean + other.mean,
            self.variance + other.variance,
            self.cross_entropy + other.cross_entropy,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a generation. `tokens` were sampled since the last delta; the last delta has a `finish`."""

    id: str
    text: str
    tokens: int
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    id: str
    columns: Columns


@dataclass(frozen=True, slots=True)
class Failed:
    id: str
    error: LitmusError


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


Job = Generate | Score
Event = Delta | Scored | Failed
