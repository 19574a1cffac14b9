"""Turns a step's plan into one flat row of tokens: first the decoding slots, each with its draft, then chunks of prompts, then chunks of
texts to score.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.engine.layout import Span
from app.engine.plan import Plan, PrefillChunk, ScoreChunk
from app.engine.slot import Slot


@dataclass(slots=True)
class FlatBatch:
    """The rows of a step. A row is one token; `ids` and `positions` have an entry a row."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    decodes: list[tuple[Sequence[int], int]] = field(default_factory=list)  # of the rows of decoding slots: pages, position
    spans: list[Span] = field(default_factory=list)
    sampled: list[tuple[int, Slot]] = field(
        default_factory=list
    )  # rows that give a next token, and their slots; those of a draft follow each other
    prefill_chunks: list[tuple[slice, PrefillChunk]] = field(default_factory=list)  # with their rows
    score_chunks: list[tuple[Span, ScoreChunk]] = field(default_factory=list)
    adapted: dict[str, list[int]] = field(default_factory=dict)  # rows of each adapter

    def append(self, tokens: Sequence[int], start: int, pages: Sequence[int] | None, adapter: str | None) -> Span:
        """Add rows for `tokens`, which stand at position `start` and after of a sequence; `pages` are its own, if it is cached."""
        span = Span(len(self.ids), len(self.ids) + len(tokens), start, pages)
        self.ids += tokens
        self.positions += range(start, span.end)
        self.spans.append(span)
        self.adapt(adapter, range(span.row_start, span.row_end))
        return span

    def append_decodes(self, slot: Slot, tokens: Sequence[int], start: int) -> range:
        """Add decoding rows of a slot, for tokens at position `start` and after; returns their indices."""
        rows, positions = range(len(self.ids), len(self.ids) + len(tokens)), range(start, start + len(tokens))
        self.ids += tokens
        self.positions += positions
        self.decodes += [(slot.pages, position) for position in positions]
        self.adapt(slot.adapter, rows)
        return rows

    def adapt(self, adapter: str | None, rows: Iterable[int]) -> None:
        if adapter is not None:
            self.adapted.setdefault(adapter, []).extend(rows)


def flatten_plan(plan: Plan, scoring_pages: Sequence[int], repeats: bool = False) -> FlatBatch:
    """`scoring_pages` are the pages of the cache for the text whose window takes several steps. `repeats`: an answer's tokens whose pages
    were taken are computed again as they were the first time, as decoding rows, whose rounding is not that of a prompt's rows.
    """
    batch = FlatBatch()
    for slot in plan.decodes:
        drafted = plan.drafts[slot].tokens if slot in plan.drafts else ()
        batch.sampled += [(row, slot) for row in batch.append_decodes(slot, (slot.tokens[-1], *drafted), slot.length)]
    for chunk in sorted(plan.prefill_chunks, key=lambda chunk: not chunk.of_answer):  # decoding rows come first
        slot, tokens = chunk.slot, chunk.slot.tokens[chunk.start : chunk.end]
        if repeats and chunk.of_answer:
            batch.append_decodes(slot, tokens, chunk.start)
        else:
            batch.append(tokens, chunk.start, slot.pages, slot.adapter)
        batch.prefill_chunks.append((slice(len(batch.ids) - len(tokens), len(batch.ids)), chunk))
        if chunk.end == len(slot.tokens):
            batch.sampled.append((len(batch.ids) - 1, slot))
    _append_score_chunks(batch, plan.score_chunks, scoring_pages)
    return batch


def flatten_score_chunks(chunks: Sequence[ScoreChunk], scoring_pages: Sequence[int]) -> FlatBatch:
    batch = FlatBatch()
    _append_score_chunks(batch, chunks, scoring_pages)
    return batch


def _append_score_chunks(batch: FlatBatch, chunks: Sequence[ScoreChunk], scoring_pages: Sequence[int]) -> None:
    """Positions count from the start of a chunk's window, not of its text."""
    for chunk in chunks:
        tokens = chunk.text.job.tokens[chunk.start : chunk.end]
        pages = scoring_pages if chunk.cached else None
        adapter = None if chunk.window.base else chunk.text.job.adapter
        span = batch.append(tokens, chunk.start - chunk.window.start, pages, adapter)
        span.is_text = True
        batch.score_chunks.append((span, chunk))
