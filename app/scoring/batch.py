"""Scores many texts with a model in this process: the same steps, and so the same numbers, as `POST /v1/score`."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from app.engine.engine import Engine
from app.engine.events import Columns, Failed, Scored
from app.engine.facts import Facts
from app.engine.plan import TextState
from app.errors import EngineFailed, InvalidRequest
from app.models.loading import create_engine
from app.schemas import Granularity, Method, Score, ScoreFailure
from app.scoring.detector import ScoreOptions, detector_of
from app.scoring.prepare import Preparation, PreparedText
from app.scoring.score import build_score
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

MAX_IN_FLIGHT = 8  # texts in the engine at once: enough to use the token budget of every step


Watch = Callable[[Mapping[int, float]], None]  # told which share is read of each text that is at work, by its index; the first one first


@dataclass(frozen=True, slots=True)
class Scorer:
    """A loaded model and how its texts are judged."""

    engine: Engine
    facts: Facts
    preparation: Preparation
    options: ScoreOptions

    def score(self, texts: Iterable[str], watch: Watch | None = None) -> Iterator[Score | ScoreFailure]:
        """The score of each text, in the order of the texts. A text that cannot be scored becomes a `ScoreFailure`. `watch` is called after
        each step of the engine.
        """
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
                if watch is not None:
                    watch(self._shares(index for index, _ in waiting))
            while waiting and (item := self._finished(*waiting[0], done)) is not None:
                waiting.popleft()
                yield item

    def _shares(self, indices: Iterable[int]) -> dict[int, float]:
        """What is read of the texts with these indices; those that the engine does not have any more are read."""
        being_read = {text.job.id: _share_read(text) for text in self.engine.scheduler.texts.texts}
        return {index: being_read.get(str(index), 1.0) for index in indices}

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


def _share_read(text: TextState) -> float:
    left = sum(window.end - window.start for window in text.windows) - text.computed
    return 1 - left / sum(window.end - window.start for window in text.job.windows)


def create_scorer(
    settings: ModelSettings,
    methods: Sequence[Method] | None = None,
    granularity: Granularity = "none",
    target_fpr: float | None = None,
) -> Scorer:
    """Loads the model of `settings`, and the calibration that a server of it would use. Raises a `LitmusError` if either fails."""
    engine, facts = create_engine(settings)
    options = detector_of(settings).options(facts, methods, granularity, target_fpr)
    return Scorer(engine, facts, options.preparation(Tokenizer(settings.path), facts.text_window), options)
