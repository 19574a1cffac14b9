"""A plan laid out as one flat row of tokens: decoding slots, then chunks of prompts, then passages of texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.engine.layout import Span
from app.engine.scheduler import Chunk, Passage, Plan
from app.engine.slot import Slot


@dataclass(slots=True)
class Rows:
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    sampling: list[tuple[int, Slot]] = field(default_factory=list)  # rows whose logits are needed, and whose they are
    chunks: list[tuple[Span, Chunk]] = field(default_factory=list)
    passages: list[tuple[Span, Passage]] = field(default_factory=list)

    def append(self, tokens: Sequence[int], start: int, slot: int | None) -> Span:
        span = Span(len(self.ids), len(self.ids) + len(tokens), start, slot)
        self.ids += tokens
        self.positions += range(start, span.end)
        self.spans.append(span)
        return span


def lay_out(plan: Plan, reading_slot: int) -> Rows:
    rows = Rows([slot.tokens[-1] for slot in plan.decodes], [slot.length for slot in plan.decodes])
    rows.sampling = list(enumerate(plan.decodes))
    for chunk in plan.chunks:
        span = rows.append(chunk.slot.tokens[chunk.start : chunk.end], chunk.start, chunk.slot.index)
        rows.chunks.append((span, chunk))
        if chunk.end == len(chunk.slot.tokens):
            rows.sampling.append((span.last - 1, chunk.slot))
    _append_passages(rows, plan.passages, reading_slot)
    return rows


def lay_out_passages(passages: Sequence[Passage], reading_slot: int) -> Rows:
    rows = Rows()
    _append_passages(rows, passages, reading_slot)
    return rows


def _append_passages(rows: Rows, passages: Sequence[Passage], reading_slot: int) -> None:
    """A passage stands at its place in its window, so positions begin anew with each window."""
    for passage in passages:
        tokens = passage.reading.job.tokens[passage.start : passage.end]
        slot = reading_slot if passage.kept else None
        rows.passages.append((rows.append(tokens, passage.start - passage.window.start, slot), passage))
