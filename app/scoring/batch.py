"""Scores many texts with a model in this process: the same steps, and so the same numbers, as `POST /v1/score`."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from app.engine.engine import Engine
from app.engine.events import Columns, Failed, Scored
from app.engine.facts import Facts
from app.errors import EngineFailed, InvalidRequest
from app.models.loading import create_engine
from app.schemas import Granularity, Method, Score, ScoreFailure
from app.scoring.detector import ScoreOptions, detector_of
from app.scoring.prepare import Preparation, PreparedText
from app.scoring.score import build_score
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

MAX_IN_FLIGHT = 8  # texts in the engine at once: enough to use the token budget of every step


@dataclass(frozen=True, slots=True)
class Scorer:
    """A loaded model and how its texts are judged."""

    engine: Engine
    facts: Facts
    preparation: Preparation
    options: ScoreOptions

    def score(self, texts: Iterable[str]) -> Iterator[Score | ScoreFailure]:
        """The score of each text, in the order of the texts. A text that cannot be scored becomes a `ScoreFailure`."""
        waiting: deque[tuple[int, PreparedText | ScoreFailure]] = deque()  # in order
        done: dict[str, Scored | Failed] = {}
        source, numbers = iter(texts), count()
        while True:
            for text in source:
                index = next(numbers)
                waiting.append((index, self._submit(index, text)))
                if len(waiting) >= MAX_IN_FLIGHT:
                    break
            if not waiting:
                return
            if not self.engine.idle:
                done.update((event.id, event) for event in self.engine.step() if isinstance(event, Scored | Failed))
            while waiting and (item := self._finished(*waiting[0], done)) is not None:
                waiting.popleft()
                yield item

    def _submit(self, index: int, text: str) -> PreparedText | ScoreFailure:
        try:
            prepared = self.preparation.prepare(text, str(index), "text")
        except InvalidRequest as error:
            return ScoreFailure(index=index, message=error.message, code=error.code)
        if prepared.job.windows:
            self.engine.submit(prepared.job)
        return prepared

    def _finished(self, index: int, prepared: PreparedText | ScoreFailure, done: dict[str, Scored | Failed]) -> Score | ScoreFailure | None:
        if isinstance(prepared, ScoreFailure):
            return prepared
        event = done.pop(prepared.job.id, None)
        if event is None and prepared.job.windows:
            return None
        if isinstance(event, Failed):
            if isinstance(event.error, EngineFailed | InvalidRequest):
                return ScoreFailure(index=index, message=event.error.message, code=event.error.code)
            raise event.error
        return build_score(index, self.options, event.columns if event else Columns(), prepared)


def create_scorer(
    settings: ModelSettings,
    methods: Sequence[Method] | None = None,
    granularity: Granularity = "none",
    target_fpr: float | None = None,
) -> Scorer:
    """Loads the model of `settings`, and the calibration that a server of it would use. Raises a `LitmusError` if either fails."""
    engine, facts = create_engine(settings)
    options = detector_of(settings).options(facts, methods, granularity, target_fpr)
    return Scorer(engine, facts, options.preparation(Tokenizer(settings.path), facts.context), options)
