"""How far a prompt is read: said after each chunk of it, and only to those who ask."""

from driving import drain
from tinymodels import CONTEXT, letters, tiny

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta
from app.engine.notices import Progress
from app.engine.request import BeamSearchParams, Generate, SamplingParams

GREEDY = SamplingParams(temperature=0.0)
PROMPT = tuple(range(2, 52))  # three whole chunks and two tokens


def create(step_tokens: int = 16) -> Engine:
    model = create_flat_model(tiny("Llama"), CacheLimits(4, CONTEXT))
    return Engine(model, letters, frozenset(), EngineLimits(4, CONTEXT, step_tokens))


def progress_of(engine: Engine, job: Generate) -> list[Progress]:
    engine.submit(job)
    events = drain(engine)
    found = [event for event in events if isinstance(event, Progress)]
    assert events[: len(found)] == found, "all of it before the first token"
    assert isinstance(events[len(found)], Delta)
    return found


def test_each_chunk_of_a_prompt_is_told_and_the_last_one_is_the_whole_prompt() -> None:
    found = progress_of(create(), Generate("a", PROMPT, 2, GREEDY, progress=True))
    assert [(event.id, event.total, event.cached, event.processed) for event in found] == [
        ("a", 50, 0, 16),
        ("a", 50, 0, 32),
        ("a", 50, 0, 48),
        ("a", 50, 0, 50),
    ]
    assert 0 < found[0].elapsed_s < found[-1].elapsed_s


def test_who_does_not_ask_is_told_nothing() -> None:
    assert progress_of(create(), Generate("a", PROMPT, 2, GREEDY)) == []


def test_what_the_cache_holds_counts_as_read() -> None:
    engine = create()
    progress_of(engine, Generate("a", PROMPT, 1, GREEDY))
    found = progress_of(engine, Generate("b", (*PROMPT, *range(60, 80)), 1, GREEDY, progress=True))
    assert [(event.cached, event.processed) for event in found] == [(50, 66), (50, 70)]


def test_a_prefix_copied_from_a_busy_slot_counts_as_read() -> None:
    engine = create()
    engine.submit(Generate("a", PROMPT, 30, GREEDY))
    while not any(isinstance(event, Delta) for event in engine.step()):
        pass
    engine.submit(Generate("b", (*PROMPT[:40], 70, 71), 1, GREEDY, progress=True))
    found = [event for event in drain(engine) if isinstance(event, Progress)]
    assert {(event.id, event.total, event.cached) for event in found} == {("b", 42, 40)}
    assert found[-1].processed == 42


def test_a_search_tells_of_its_prompt_once() -> None:
    found = progress_of(create(), Generate("a", PROMPT, 2, GREEDY, search=BeamSearchParams(2), progress=True))
    assert [event.processed for event in found] == [16, 32, 48, 50]
