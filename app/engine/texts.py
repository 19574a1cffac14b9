"""What a step's hidden states tell of its texts: statistics of those to score, one pooled vector of those to embed.

Knows no slots and no scheduling.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from app.engine.batch import FlatBatch, flatten_score_chunks
from app.engine.events import Embedded, Scored, concatenate_columns
from app.engine.flat import FlatModel
from app.engine.layout import layout_of
from app.engine.plan import ScoreChunk, TextState
from app.engine.request import Embed, Pooling, Score
from app.scoring.statistics import token_statistics


class Texts:
    """`observer`, if there is one, computes hidden states of its own, of the texts whose jobs ask for them. Of a text with an adapter the
    base is the observer: it reads each window first.
    """

    def __init__(self, performer: FlatModel, observer: FlatModel | None) -> None:
        self._performer = performer
        self._observer = observer

    def account(self, batch: FlatBatch, hidden: torch.Tensor) -> Iterator[tuple[TextState, Scored | Embedded]]:
        """Account for the step's chunks of texts, from the states `[rows, hidden]` of the whole step. Yields each text whose last chunk
        this was, with its event.
        """
        observer_states = self._observe([chunk for _, chunk in batch.score_chunks])
        for span, chunk in batch.score_chunks:
            text, states = chunk.text, hidden[span.row_start : span.row_end]
            if chunk.window.base:
                text.observed.append(states.clone())
                continue
            is_last = not text.windows and chunk.end == chunk.window.end
            if isinstance(text.job, Embed):
                text.pooled = add_states(text.pooled, states, text.job.pooling)
                if is_last:
                    yield text, Embedded(text.job.id, unit_vector(text.pooled))
            else:
                self._add_statistics(chunk, states, self._base_states(chunk) if text.observed else observer_states.get(id(chunk)))
                if chunk.end == chunk.window.end:
                    text.observed.clear()
                if is_last:
                    yield text, Scored(text.job.id, concatenate_columns(text.columns))

    def _add_statistics(self, chunk: ScoreChunk, states: torch.Tensor, observer_states: torch.Tensor | None) -> None:
        """`states` and `observer_states` are `[tokens of the chunk, hidden]`."""
        text, window = chunk.text, chunk.window
        first, last = max(window.scored_from, chunk.start + 1), min(chunk.end + 1, window.end)
        if first >= last:
            return
        before = slice(first - 1 - chunk.start, last - 1 - chunk.start)  # tokens [first, last), each from the state of the one before it
        targets = torch.tensor(text.job.tokens[first:last], device=states.device)
        observer = self._observer if text.job.adapter is None else self._performer
        observed = None if observer_states is None or observer is None else (observer_states[before], observer.head)
        top = text.job.top if isinstance(text.job, Score) else 0
        text.columns.append(token_statistics(states[before], targets, self._performer.head, observed, top))

    def _base_states(self, chunk: ScoreChunk) -> torch.Tensor:
        """The base's hidden states of the chunk's tokens, of those of the whole window."""
        text, start = chunk.text, chunk.window.start
        text.observed = [torch.cat(text.observed)]
        return text.observed[0][chunk.start - start : chunk.end - start]

    def _observe(self, chunks: list[ScoreChunk]) -> dict[int, torch.Tensor]:
        """The observer's hidden states of the chunks whose jobs ask for them and have no adapter, by the chunks' `id()`."""
        observed = [
            chunk for chunk in chunks if isinstance(chunk.text.job, Score) and chunk.text.job.observe and chunk.text.job.adapter is None
        ]
        if not observed or self._observer is None:
            return {}
        batch = flatten_score_chunks(observed, self._observer.scoring_pages)
        layout = layout_of([], batch.spans, self._observer.page_tokens, self._observer.device)
        hidden = self._observer.forward(batch.ids, batch.positions, layout)
        return {id(chunk): hidden[span.row_start : span.row_end] for span, chunk in batch.score_chunks}


def add_states(pooled: list[float], states: torch.Tensor, pooling: Pooling) -> list[float]:
    """`pooled` after the next `states` `[tokens, hidden]` of a text: their sum, in float64, or the last of them."""
    if pooling == "last":
        return states[-1].tolist()
    total = states.sum(0, dtype=torch.float64).cpu()
    return (total + torch.tensor(pooled, dtype=torch.float64) if pooled else total).tolist()


def unit_vector(values: list[float]) -> bytes:
    """The values scaled to length 1, which makes a mean of their sum; float32, little-endian."""
    return F.normalize(torch.tensor(values, dtype=torch.float64), dim=0).numpy().astype("<f4").tobytes()
