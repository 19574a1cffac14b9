"""Steps that only decode, recorded once for each number of rows and then replayed: as CUDA graphs, which Python launches in one call.

What a step needs to know goes to the device in one copy, and its tokens come back in one. A token can be the input of the next step before
the host knows it. Knows no slots and no requests.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from app.engine import devicesampling, varlen
from app.engine.capacity import CHOICES, Choice, page_counts, row_counts
from app.engine.changes import ROW_FORMAT, RowChanges, answer_changes, change_logits, write_changes
from app.engine.devicesampling import COLUMNS, NUCLEUS_TOKENS, RowNumbers, draw
from app.engine.flat import FlatModel
from app.engine.layout import Call, layout_of
from app.engine.proof import MAX_ERROR, check_ids
from app.engine.request import SamplingParams
from app.engine.varlen import PAGE_TOKENS, Reads
from app.errors import first_line

log = logging.getLogger(__name__)

TOKEN, SOURCE, POSITION, USED, PLACE, TABLE = range(6)  # columns of a row's integers; its pages begin at the last one
CHECKED_STEPS = 4
CHECKED_PARAMS = SamplingParams(repetition_penalty=1.5, frequency_penalty=0.5, logit_bias=((1, 5.0),))

Work = Callable[[], None]
Record = Callable[[Work], Work]  # returns what does the same work again, with what its inputs hold then


@dataclass(frozen=True, slots=True)
class DecodeRow:
    token: int | None  # None: the one that row `source` of the step before draws
    source: int
    position: int
    pages: Sequence[int]  # of its sequence
    numbers: RowNumbers  # how its next token is drawn, see `devicesampling`
    changes: RowChanges | None = None  # in its logits


class Launched:
    """The tokens of a step that was given to the device."""

    def __init__(self, drawn: torch.Tensor, event: "torch.cuda.Event | None") -> None:
        self._drawn, self._event = drawn, event

    def tokens(self) -> list[list[int]]:
        """Of each row the token, and 1 if it is right, else 0 (see `draw`). Waits for the step."""
        if self._event is not None:
            self._event.synchronize()
        return self._drawn.tolist()


class DecodeGraphs:
    def __init__(self, flat: FlatModel, rows: int, record: Record) -> None:
        """For steps of at most `rows` rows. The model attends by torch's flash kernel."""
        self.counts = row_counts(rows)
        self._flat, self._record = flat, record
        most, pages, device = self.counts[-1], flat.context_pages, flat.device
        self._widths = page_counts(pages, varlen.has_page_table())
        self._spare = flat.pages  # the page of rows that belong to no sequence
        size = 8 * COLUMNS + 4 * (TABLE + pages)
        shape, pinned = (most, size + -size % 8), device.type == "cuda"
        self._hosts = [torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]  # one is written while one is read
        self._changes_hosts = [torch.zeros(most, ROW_FORMAT.itemsize, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        self._drawn_hosts = [torch.zeros(most, 2, dtype=torch.long, pin_memory=pinned) for _ in range(2)]
        self._inputs = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._numbers, self._integers = self._inputs[:, : 8 * COLUMNS].view(torch.float64), _integers(self._inputs, pages)
        self._changes = torch.zeros(most, ROW_FORMAT.itemsize, dtype=torch.uint8, device=device)
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._drawn = torch.zeros(most, 2, dtype=torch.long, device=device)  # token, and whether it is right
        example = flat.head(torch.zeros(1, flat.hidden_size, dtype=flat.model.dtype, device=device))
        self._logits = torch.zeros(most, example.shape[1], dtype=example.dtype, device=device)
        self._replays: dict[tuple[int, int, Choice], Work] = {}  # by rows, pages of a row, and how tokens are chosen
        self._turn = 0

    @property
    def most_rows(self) -> int:
        return self.counts[-1]

    @property
    def vocabulary(self) -> int:
        """Columns of the logits."""
        return self._logits.shape[1]

    @torch.inference_mode()
    def record(self) -> None:
        """Record all steps, and compare what some of them compute. Raises `RuntimeError` if that is impossible or wrong."""
        self._send([], "likeliest")
        for rows in reversed(self.counts):  # the largest first: the others fit into its memory
            for width in self._widths:
                for choice in CHOICES:
                    self._replays[rows, width, choice] = self._record(self._work(rows, width, choice))
        for rows in {self.counts[0], self.counts[-1]}:
            self._check(rows)

    @torch.inference_mode()
    def launch(self, rows: Sequence[DecodeRow]) -> Launched:
        """Give a step of at most `most_rows` rows to the device. What the step before last has drawn is no longer there after this."""
        choice = _choice(rows)
        self._send(rows, choice)
        height = next(each for each in self.counts if each >= len(rows))
        longest = max(row.position // PAGE_TOKENS + 1 for row in rows)
        width = next(each for each in self._widths if each >= longest)
        self._replays[height, width, choice]()
        drawn = self._drawn_hosts[self._turn][: len(rows)]
        drawn.copy_(self._drawn[: len(rows)], non_blocking=True)
        return Launched(drawn, _event(self._flat.device))

    @torch.inference_mode()
    def logits(self, rows: list[int]) -> torch.Tensor:
        """The logits `[rows, vocab]` of these rows of the latest step."""
        return self._logits[: len(rows)].clone() if rows == list(range(len(rows))) else self._logits[rows]

    def _send(self, rows: Sequence[DecodeRow], choice: Choice) -> None:
        self._turn = 1 - self._turn
        host = self._hosts[self._turn]
        numbers, integers = host[:, : 8 * COLUMNS].view(torch.float64).numpy(), _integers(host, self._flat.context_pages).numpy()
        heads = []
        for place, row in enumerate(rows):
            last, rest = divmod(row.position, PAGE_TOKENS)
            integers[place, TABLE : TABLE + last + 1] = row.pages[: last + 1]
            token, source = (0, row.source + 1) if row.token is None else (row.token, 0)
            heads.append((token, source, row.position, row.position + 1, row.pages[last] * PAGE_TOKENS + rest))
        if heads:
            integers[: len(rows), :TABLE] = heads  # in one go: each assignment takes a microsecond
            numbers[: len(rows)] = [row.numbers for row in rows]
        integers[len(rows) :, :TABLE] = 0, 0, 0, 1, self._spare * PAGE_TOKENS
        integers[len(rows) :, TABLE] = self._spare
        numbers[len(rows) :] = devicesampling.GREEDY
        self._inputs.copy_(host, non_blocking=True)
        if choice == "changed and drawn":
            self._send_changes(rows)

    def _send_changes(self, rows: Sequence[DecodeRow]) -> None:
        host = self._changes_hosts[self._turn][: len(rows)]
        write_changes([row.changes for row in rows], host)
        self._changes[: len(rows)].copy_(host, non_blocking=True)

    def _work(self, rows: int, width: int, choice: Choice) -> Work:
        numbers, integers, changed = self._numbers[:rows], self._integers[:rows], self._changes[:rows]

        def work() -> None:
            source = integers[:, SOURCE].long()
            tokens = torch.where(source > 0, self._drawn[:, 0].index_select(0, (source - 1).clamp(min=0)), integers[:, TOKEN].long())
            reads = Reads(self._starts[: rows + 1], integers[:, USED].contiguous(), integers[:, TABLE : TABLE + width], 1)
            attention = self._flat.attention
            attention.calls = (Call(slice(0, rows), "slots", reads, integers[:, PLACE].long()),)
            try:
                hidden = self._flat.compute(torch.stack([tokens, integers[:, POSITION].long()]))
            finally:
                attention.calls = None
            logits = self._flat.head(hidden)
            self._logits[:rows].copy_(logits)
            if choice == "changed and drawn":
                logits = change_logits(logits, changed, torch.where(source > 0, tokens, -1))
            if choice == "likeliest":
                drawn, is_right = logits.max(-1).indices, torch.ones_like(source)
            else:
                drawn, is_right = draw(logits, numbers, NUCLEUS_TOKENS)
            self._drawn[:rows].copy_(torch.stack([drawn, is_right.long()], 1))

        return work

    def _check(self, rows: int) -> None:
        """Compare replayed steps of so many rows with what is not recorded: logits, on the first page and on the last of each width, and
        tokens drawn from these logits. Raises `RuntimeError`.
        """
        flat, sampled = self._flat, devicesampling.random_row(0.6, 1.0, 0, 0.9, 0.0)
        ids, ends = check_ids(flat.model), [width * PAGE_TOKENS - 1 for width in self._widths]
        changed = answer_changes(CHECKED_PARAMS, 1, frozenset(), self.vocabulary)
        history = None if changed is None else changed.read(ids, len(ids) - 1)
        none_new = torch.full((1,), -1, device=flat.device)  # the history has all tokens
        for token, position in zip(ids, [*range(CHECKED_STEPS), *ends], strict=False):
            pages = range(position // PAGE_TOKENS + 1)
            states = flat.forward([token], [position], layout_of([(pages, position)], [], PAGE_TOKENS, flat.device))
            expected = flat.head(states).float()
            for numbers, changes in ((devicesampling.GREEDY, None), (sampled, None), (sampled, history)):
                drawn = self.launch([DecodeRow(token, 0, position, pages, numbers, changes)] * rows).tokens()
                logits = self.logits([rows - 1])
                error = float((logits.float() - expected).norm() / expected.norm())
                if not error <= MAX_ERROR:
                    raise RuntimeError(f"the logits of a recorded step of {rows} rows differ by {error:.1%}")
                if changes is not None:
                    logits = change_logits(logits, self._changes[rows - 1 : rows], none_new)
                right = [int(part) for part in draw(logits, self._numbers[rows - 1 : rows], NUCLEUS_TOKENS)]
                if drawn[-1] != right:
                    raise RuntimeError(f"a recorded step of {rows} rows draws other tokens than its logits give")


class CudaRecorder:
    """Records work as CUDA graphs. They share their memory: one runs after the other."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._is_first = True

    def __call__(self, work: Work) -> Work:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()  # what libraries do once is not recorded
            if self._is_first:
                _check_waits(work)
            graph = self._record(work)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._is_first = False
        graph.replay()  # the first launch takes longer: no request should wait for it
        return graph.replay

    def _record(self, work: Work) -> torch.cuda.CUDAGraph:
        graph, is_recorded = torch.cuda.CUDAGraph(), False
        torch.cuda.synchronize()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")  # other threads may use the card meanwhile
        try:
            work()
            graph.capture_end()
            is_recorded = True
        finally:
            if not is_recorded:
                self._abandon(graph)
        return graph

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording that failed. torch 2.11 leaves its memory open, and would then never free what is cached."""
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)


def _check_waits(work: Work) -> None:
    """Raises `RuntimeError` if the work waits for the device: a recording that fails would leave torch's memory in disorder."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def create_graphs(flat: FlatModel, rows: int) -> DecodeGraphs | None:
    """Recorded graphs; None where torch's flash kernel does not compute the model or several cards do, or where its steps cannot be
    recorded: the log says why.
    """
    if not flat.attention.is_flash:
        return None
    if not flat.attends_only:
        log.info("decode steps are not recorded as CUDA graphs: some of the model's layers are no attention")
        return None
    if len(flat.devices) > 1:
        log.info("decode steps are not recorded as CUDA graphs: the model is divided among %s", flat.device_name)
        return None
    graphs: DecodeGraphs | None = None
    try:
        graphs = DecodeGraphs(flat, rows, CudaRecorder())
        graphs.record()
    except RuntimeError as error:
        log.warning("decode steps are not recorded as CUDA graphs, and so are slower: %s", first_line(error))
        graphs = None
    flat.wait()
    if flat.device.type == "cuda":
        torch.cuda.empty_cache()  # what was kept for the stream on which they were recorded
    return graphs


def _choice(rows: Sequence[DecodeRow]) -> Choice:
    if any(row.changes is not None for row in rows):
        return "changed and drawn"
    return "likeliest" if all(row.numbers[devicesampling.IS_GREEDY] for row in rows) else "drawn"


def _integers(buffer: torch.Tensor, pages: int) -> torch.Tensor:
    return buffer[:, 8 * COLUMNS : 8 * COLUMNS + 4 * (TABLE + pages)].view(torch.int32)


def _event(device: torch.device) -> "torch.cuda.Event | None":
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
