"""Runs a draft model: it reads tokens of requests, and draws what may follow them, for several requests in one forward.

It draws as the sampler would from the served model: with the request's parameters, its grammar, and the noise of (seed, position). So two
models that agree on the probabilities draw the same token, sampled or greedy. Knows no schedule.
"""

import time
from collections.abc import Sequence

from app.engine.costs import RowCosts
from app.engine.flat import FlatModel
from app.engine.lanes import Drawing, Lane, Lanes
from app.engine.layout import Span, layout_of
from app.engine.request import Generate
from app.engine.sampler import SamplerRow, sample

WARM_UP_TOKENS = (1, 2, 4, 8, 16, 64)
WARM_UP_RUNS = 8


class DraftModel:
    """Of `flat`, each of whose slots is a lane."""

    def __init__(self, flat: FlatModel, vocabulary: int) -> None:
        """`vocabulary` is the number of tokens of the served model."""
        self.context = flat.context  # tokens of a lane
        self.vocabulary = min(flat.vocabulary, vocabulary)
        self.lanes = Lanes(flat.slots, flat.context_pages)
        self.costs = RowCosts()  # of its own forwards, with the sampling behind them
        self._flat = flat

    def read(self, lane: Lane, tokens: Sequence[int]) -> None:
        """Read `tokens` behind those that the lane has."""
        begun_s, start = time.perf_counter(), len(lane.tokens)
        layout = layout_of([], [Span(0, len(tokens), start, lane.pages)], self._flat.page_tokens, self._flat.device)
        self._flat.forward(list(tokens), list(range(start, start + len(tokens))), layout)
        self._flat.wait()
        lane.tokens += tokens
        self.costs.record(len(tokens), time.perf_counter() - begun_s)

    def draw(self, drawings: Sequence[Drawing]) -> None:
        """Draw for all of them, a token for each in a forward, until each has what it wants."""
        while running := [drawing for drawing in drawings if drawing.left > 0]:
            for drawing, token in zip(running, self._draw(running), strict=True):
                if token < self.vocabulary:
                    drawing.add(token)
                else:
                    drawing.left = 0

    def warm_up(self) -> None:
        """Learn what forwards take."""
        for tokens in (min(tokens, self.context) for tokens in WARM_UP_TOKENS for _ in range(WARM_UP_RUNS)):
            lane = Lane(range(self._flat.context_pages))
            self._draw([Drawing(Generate("warm-draft", (0,), 1), lane, [0] * tokens, tokens, 1, frozenset())])

    def _draw(self, drawings: Sequence[Drawing]) -> list[int]:
        """The next token of each. Reads what is new in its text before."""
        begun_s = time.perf_counter()
        ids: list[int] = []
        rows: list[tuple[range, int]] = []  # pages and position of each
        last: list[int] = []
        for drawing in drawings:
            read = len(drawing.lane.tokens)
            ids += drawing.text[read:]
            rows += [(drawing.lane.pages, position) for position in range(read, len(drawing.text))]
            last.append(len(ids) - 1)
            drawing.lane.tokens += drawing.text[read:]
        layout = layout_of(rows, [], self._flat.page_tokens, self._flat.device)
        hidden = self._flat.forward(ids, [position for _, position in rows], layout)
        tokens = sample(self._flat.head(hidden[last]), [_sampler_row(drawing) for drawing in drawings])
        self.costs.record(len(ids), time.perf_counter() - begun_s)
        return tokens


def _sampler_row(drawing: Drawing) -> SamplerRow:
    request, ahead = drawing.request, drawing.ahead
    mask = None if ahead is None else ahead.choices[-1].allowed
    return SamplerRow(request.sampling, drawing.text, len(request.prompt), drawing.ends, mask)
