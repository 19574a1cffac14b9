"""What the server did in the last minutes, as one visitor's page has seen it: samples of its state, and series made of two each.

Pure: the times are the server's own. Knows no Gradio and draws nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from app.schemas.overview import ModelOverview, Overview, ProcessUse

KEPT_S = 300.0
GAP_S = 10.0  # between two samples further apart the page was not looking: no line is drawn there

Point = tuple[float, float | None]  # (seconds before the latest sample as a negative number, value); None: nothing is known
Series = dict[str, list[Point]]  # by what the line stands for


@dataclass(frozen=True, slots=True)
class ModelSample:
    generated_tokens: int
    prompt_tokens: int
    scored_tokens: int
    running: int  # answers that have a slot
    waiting: int
    first_token_s: tuple[float, float, float] | None  # p50, p90, p99


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    started: int
    models: dict[str, ModelSample]
    cpu_s: dict[str, float]  # by process
    resident_bytes: dict[str, int]  # by process
    gpu_use: dict[str, float]  # by GPU, 0 to 1
    gpu_bytes: dict[str, int]


History = tuple[Sample, ...]


def extended(history: History, overview: Overview) -> History:
    """The history with one more sample and without what is too old; of a server that started anew, only what it did since."""
    sample = sample_of(overview)
    kept = [old for old in history if sample.at_s - KEPT_S <= old.at_s < sample.at_s and old.started == sample.started]
    return (*kept, sample)


def sample_of(overview: Overview) -> Sample:
    return Sample(
        at_s=overview.at,
        started=overview.started,
        models={model.id: _model_sample(model) for model in overview.models},
        cpu_s={name_of(process): process.cpu_s for process in overview.processes},
        resident_bytes={name_of(process): process.resident_bytes for process in overview.processes},
        gpu_use={f"GPU {gpu.index}": gpu.utilization for gpu in overview.gpus if gpu.utilization is not None},
        gpu_bytes={f"GPU {gpu.index}": gpu.used_bytes for gpu in overview.gpus},
    )


def _model_sample(model: ModelOverview) -> ModelSample:
    first = model.first_token
    return ModelSample(
        generated_tokens=model.generated_tokens,
        prompt_tokens=model.prompt_tokens,
        scored_tokens=model.scored_tokens,
        running=running_of(model),
        waiting=sum(len(engine.waiting) for engine in model.engines),
        first_token_s=None if first is None else (first.p50_s, first.p90_s, first.p99_s),
    )


def running_of(model: ModelOverview) -> int:
    """Answers that have a slot; a search has several slots for one answer."""
    return len({slot.request for engine in model.engines for slot in engine.slots if slot.request is not None})


def name_of(process: ProcessUse) -> str:
    """What a process is called in a legend."""
    if process.process != "worker":
        return {"api": "answers requests", "main": "main process"}[process.process]
    return f"{process.model}" if not process.replica else f"{process.model}, replica {process.replica}"


def levels(history: History, values: Callable[[Sample], dict[str, float | None]]) -> Series:
    """What was so at each sample."""
    series = _empty(values(sample) for sample in history)
    for before, sample in _with_previous(history):
        found, at_s = values(sample), sample.at_s - history[-1].at_s
        _break_if_far(series, before, sample, at_s)
        for name, points in series.items():
            points.append((at_s, found.get(name)))
    return series


def rates(history: History, counts: Callable[[Sample], dict[str, float]]) -> Series:
    """How much of a count there was a second, between each two samples."""
    series = _empty(counts(sample) for sample in history[1:])
    for before, sample in pairwise(history):
        earlier, later, at_s = counts(before), counts(sample), sample.at_s - history[-1].at_s
        _break_if_far(series, before, sample, at_s)
        for name, points in series.items():
            points.append((at_s, _rate(earlier.get(name), later.get(name), sample.at_s - before.at_s)))
    return series


def latest(points: Sequence[Point]) -> float | None:
    """The value of the latest sample."""
    return points[-1][1] if points else None


def _rate(earlier: float | None, later: float | None, seconds: float) -> float | None:
    """None where a process has ended, or another one has begun in its place."""
    return None if earlier is None or later is None or later < earlier else (later - earlier) / seconds


def _empty(samples: Iterable[Mapping[str, object]]) -> Series:
    return {name: [] for values in samples for name in values}


def _with_previous(history: History) -> list[tuple[Sample | None, Sample]]:
    return list(zip((None, *history), history, strict=False))


def _break_if_far(series: Series, before: Sample | None, sample: Sample, at_s: float) -> None:
    if before is not None and sample.at_s - before.at_s > GAP_S:
        for points in series.values():
            points.append((at_s, None))
