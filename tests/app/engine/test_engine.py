"""The engine against slow, obvious ways to get the same answer: transformers' own forward, and a request that runs alone."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from driving import answers_of, drain, flat_model, random_prompt, reference_model
from tinymodels import CONTEXT, VOCABULARY, letters, tiny

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta, Event, Failed, Scored
from app.engine.request import BeamSearchParams, ContrastiveSearchParams, Generate, SamplingParams, Score, Window
from app.errors import UnsupportedModel
from app.scoring.windows import windows


def create(name: str = "Llama", slots: int = 4, step_tokens: int = 16, observer: bool = False) -> Engine:
    performer = flat_model(name, CacheLimits(slots, CONTEXT))
    second = flat_model(name, CacheLimits(0, CONTEXT), seed=1) if observer else None
    return Engine(performer, letters, frozenset(), EngineLimits(slots, CONTEXT, step_tokens), second)


@pytest.mark.parametrize("name", ["Falcon"])
def test_a_model_that_would_be_served_wrongly_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{name}\w+ cannot be served"):
        create_flat_model(tiny(name), CacheLimits(2, CONTEXT))


def test_the_same_seed_gives_the_same_tokens_alone_and_beside_others() -> None:
    rng = random.Random(5)
    jobs = [
        Generate(str(i), random_prompt(rng), 24, SamplingParams(temperature=1.2, top_k=(0, 7, 50)[i % 3], top_p=(1, 0.9)[i % 2], seed=i))
        for i in range(12)
    ]
    alone = {}
    for job in jobs:
        engine = create()
        engine.submit(job)
        alone |= answers_of(drain(engine))
    together, events = create(slots=5), []
    for job in jobs:
        together.submit(job)
        events += together.step()
    events += drain(together)
    assert answers_of(events) == alone
    assert len(set(alone.values())) == len(jobs)


def test_a_score_beside_others_equals_the_score_alone() -> None:
    rng = random.Random(2)
    bodies = [tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(2, 300))) for _ in range(6)]
    jobs = [Score(str(i), body, windows(len(body), CONTEXT), observe=True) for i, body in enumerate(bodies)]
    engine = create(observer=True)
    engine.submit(Generate("chat", random_prompt(rng), 30, SamplingParams(seed=1)))
    for job in jobs:
        engine.submit(job)
    together = {event.id: event.columns for event in drain(engine) if isinstance(event, Scored)}
    assert set(together) == {job.id for job in jobs}
    for job in jobs:
        single = create(observer=True)
        single.submit(job)
        (event,) = drain(single)
        assert isinstance(event, Scored)
        assert len(event.columns.logprob) == len(job.tokens) - 1
        for column in ("logprob", "mean", "variance", "cross_entropy"):
            assert getattr(event.columns, column) == pytest.approx(getattr(together[job.id], column), abs=1e-4)
        assert event.columns.rank == together[job.id].rank


def test_statistics_equal_those_of_the_models_own_forward() -> None:
    ids = tuple(random.Random(3).randrange(VOCABULARY) for _ in range(60))
    engine = create(observer=True)
    engine.submit(Score("s", ids, (Window(0, 60, 1),), observe=True))
    (event,) = drain(engine)
    assert isinstance(event, Scored)
    with torch.inference_mode():
        log_p = reference_model("Llama")(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        q = reference_model("Llama", seed=1)(torch.tensor([ids])).logits[0, :-1].softmax(-1)
    for row, token in enumerate(ids[1:]):
        assert event.columns.logprob[row] == pytest.approx(float(log_p[row, token]), abs=1e-4)
        assert event.columns.rank[row] == 1 + sum(other > log_p[row, token] for other in log_p[row])
        assert event.columns.mean[row] == pytest.approx(float((log_p[row].exp() * log_p[row]).sum()), abs=1e-4)
        assert event.columns.cross_entropy[row] == pytest.approx(-float((q[row] * log_p[row]).sum()), abs=1e-4)


def test_a_cancelled_request_frees_its_slot_and_changes_no_other_answer() -> None:
    rng = random.Random(4)
    kept = Generate("kept", random_prompt(rng), 20, SamplingParams(temperature=0.0))
    engine = create()
    engine.submit(kept)
    alone = answers_of(drain(engine))
    engine = create(slots=2)
    engine.submit(kept)
    engine.submit(Generate("gone", random_prompt(rng), 80))
    engine.submit(Generate("waiting", random_prompt(rng), 5, SamplingParams(temperature=0.0)))
    engine.submit(Score("text", (1, 2, 3), (Window(0, 3, 1),)))
    assert engine.cancel("text")
    events = [event for _ in range(8) for event in engine.step()]
    assert engine.cancel("gone")
    assert not engine.cancel("gone")
    assert not engine.cancel("never sent")
    events += drain(engine)
    assert answers_of(events)["kept"] == alone["kept"]
    assert len(answers_of(events)["waiting"]) == 5
    assert not any(event.id == "text" for event in events)
    assert all(slot.request is None for slot in engine.scheduler.slots)


def test_nothing_of_an_answer_is_kept_after_its_end() -> None:
    engine = create(slots=3)
    for name, tokens in (("ends", 5), ("goes on", 20), ("leaves", 80)):
        engine.submit(Generate(name, random_prompt(random.Random(4)), tokens))
    for _ in range(8):
        engine.step()
    assert engine.cancel("leaves")
    engine.step()
    assert {row.request.id for row in engine._answers._plain.values()} == {"goes on"}
    drain(engine)
    assert not engine._answers._plain


def test_an_end_token_and_a_stop_string_end_an_answer_and_are_not_part_of_it() -> None:
    ids = random_prompt(random.Random(6))
    engine = create()
    engine.submit(Generate("whole", ids, 12, SamplingParams(temperature=0.0)))
    whole = answers_of(drain(engine))["whole"]
    stopped = create()
    stopped.submit(Generate("stopped", ids, 12, SamplingParams(temperature=0.0), stop=(whole[4:6],)))
    events = drain(stopped)
    assert answers_of(events)["stopped"] == whole[: whole.index(whole[4:6])]
    assert (events[-1].finish, events[-1].stop_string) == ("stop", whole[4:6])
    ended = create()
    ended._end_tokens = frozenset({ord(whole[3]) - 0x4E00})
    ended.submit(Generate("ended", ids, 12, SamplingParams(temperature=0.0)))
    events = drain(ended)
    assert answers_of(events)["ended"] == whole[: whole.index(whole[3])]
    assert events[-1].finish == "stop"


def run_out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError


def failed_ids(events: list[Event]) -> set[str]:
    return {event.id for event in events if isinstance(event, Failed) and event.error.code == "engine_failed"}


def test_a_step_that_runs_out_of_memory_fails_what_it_ran_and_the_rest_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, greedy = random.Random(3), SamplingParams(temperature=0.0)
    jobs = [Generate(id, tuple(rng.choices(range(VOCABULARY), k=20)), 5, greedy) for id in ("runs", "has a slot", "waits")]
    jobs.insert(2, Generate("shares", (*jobs[0].prompt, 3), 5, greedy))  # it waits for the pages of the first
    expected = {}
    for job in jobs:
        alone = create()
        alone.submit(job)
        expected |= answers_of(drain(alone))
    engine = create(slots=3)
    for job in jobs:
        engine.submit(job)
    with monkeypatch.context() as patch:
        patch.setattr(engine.performer, "forward", run_out_of_memory)
        assert failed_ids(engine.step()) == {"runs"}  # whose prompt takes all the tokens of the step
    del expected["runs"]
    assert answers_of(drain(engine)) == expected
    engine.submit(Score("text", (1, 2, 3), (Window(0, 3, 1),)))
    engine.submit(Score("later", (1,) * 16, (Window(0, 16, 1),)))
    with monkeypatch.context() as patch:
        patch.setattr(engine.performer, "forward", run_out_of_memory)
        assert failed_ids(engine.step()) == {"text", "later"}
    assert engine.idle


def test_texts_that_a_step_without_memory_did_not_read_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create()
    for id in ("first", "second"):
        engine.submit(Score(id, (1, 2) * 8, (Window(0, 16, 1),)))
    with monkeypatch.context() as patch:
        patch.setattr(engine.performer, "forward", run_out_of_memory)
        assert failed_ids(engine.step()) == {"first"}
    assert [event.id for event in drain(engine) if isinstance(event, Scored)] == ["second"]


def test_when_the_copies_of_a_step_fail_everything_fails_as_nobody_knows_what_the_pages_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompt = create(slots=2), tuple(random.Random(4).choices(range(VOCABULARY), k=52))
    engine.submit(Generate("before", prompt, 1, SamplingParams(temperature=0.0)))
    answer = answers_of(drain(engine))
    for id in ("a", "b", "waits"):  # the second needs a copy of the first one's last page
        engine.submit(Generate(id, prompt, 1, SamplingParams(temperature=0.0)))
    with monkeypatch.context() as patch:
        patch.setattr(engine.performer, "copy", run_out_of_memory)
        assert failed_ids(engine.step()) == {"a", "b", "waits"}
    engine.submit(Generate("before", prompt, 1, SamplingParams(temperature=0.0)))
    assert answers_of(drain(engine)) == answer


def test_events_before_the_out_of_memory_error_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create()
    engine.submit(Generate("chat", (1, 2), 1, SamplingParams(temperature=0.0)))
    engine.submit(Score("text", (1, 2, 3), (Window(0, 3, 1),)))
    monkeypatch.setattr("app.engine.texts.token_statistics", run_out_of_memory)
    events = engine.step()
    assert [event.finish for event in events if isinstance(event, Delta)] == ["length"]
    assert [event.id for event in events if isinstance(event, Failed)] == ["text"]


@pytest.mark.parametrize("job", [Generate("a", (1, VOCABULARY), 2), Score("a", (1, VOCABULARY), (Window(0, 2, 1),)), Generate("a", (), 2)])
def test_tokens_outside_the_vocabulary_and_empty_prompts_are_refused(job: Generate | Score) -> None:
    engine = create()
    engine.submit(job)
    (event,) = drain(engine)
    assert isinstance(event, Failed) and event.error.status == 400


def test_a_text_too_short_to_be_scored_gets_empty_columns() -> None:
    engine = create()
    engine.submit(Score("short", (1,), ()))
    (event,) = drain(engine)
    assert isinstance(event, Scored) and event.columns.logprob == ()


@pytest.mark.parametrize("top", [0, 3])
def test_log_probabilities_are_those_of_the_models_own_forward_also_of_the_prompt(top: int) -> None:
    rng = random.Random(top)
    ids = tuple(rng.randrange(VOCABULARY) for _ in range(50))
    engine = create()
    engine.submit(Generate("first", ids, 4, SamplingParams(temperature=0.0)))
    drain(engine)  # the prompt is in the cache now, but its log-probabilities need it computed again
    engine.submit(Generate("chat", random_prompt(rng), 8, SamplingParams(seed=1)))
    engine.submit(Generate("asks", ids, 6, SamplingParams(temperature=0.7, seed=2), logprobs=top, prompt_logprobs=top))
    deltas = [event for event in drain(engine) if isinstance(event, Delta) and event.id == "asks"]
    logprobs = [*deltas[0].prompt_logprobs, *(each for delta in deltas for each in delta.logprobs)]
    whole = [*ids, *(each.token for delta in deltas for each in delta.logprobs)]
    assert [each.token for each in logprobs] == whole[1:]
    with torch.inference_mode():
        expected = reference_model("Llama")(torch.tensor([whole])).logits[0].log_softmax(-1)
    for position, each in enumerate(logprobs):
        assert each.logprob == pytest.approx(float(expected[position, each.token]), abs=1e-4)
        likeliest = expected[position].topk(top)
        assert [token for token, _ in each.top] == likeliest.indices.tolist()
        assert [logprob for _, logprob in each.top] == pytest.approx(likeliest.values.tolist(), abs=1e-4)


def test_min_tokens_end_tokens_and_stop_tokens() -> None:
    ids = random_prompt(random.Random(6))
    whole = [ord(letter) - 0x4E00 for letter in answers_of(_run(Generate("w", ids, 12, SamplingParams(temperature=0.0))))["w"]]
    end = whole[3]

    def count(**fields: object) -> tuple[int, str | None]:
        sampling = SamplingParams(temperature=0.0, min_tokens=int(fields.pop("min_tokens", 0)))  # type: ignore[call-overload]
        events = _run(Generate("a", ids, 12, sampling, **fields), frozenset({end}))  # type: ignore[arg-type]
        deltas = [event for event in events if isinstance(event, Delta)]
        return sum(len(delta.tokens) for delta in deltas), deltas[-1].finish

    first = whole.index(end) + 1
    assert count() == (first, "stop")
    assert count(ignore_eos=True) == (12, "length")
    assert count(ignore_eos=True, stop_tokens=frozenset({whole[1]})) == (whole.index(whole[1]) + 1, "stop")
    assert count(min_tokens=first + 2)[0] > first
    letters_of = [chr(0x4E00 + token) for token in whole]
    again = next((place for place in range(5, 12) if letters_of[place] == letters_of[4]), None)
    stopped = count(ignore_eos=True, stop=(letters_of[4],), min_tokens=5)
    assert stopped == ((12, "length") if again is None else (again + 1, "stop"))  # what ends the first five tokens does not end the answer
    assert count(ignore_eos=True, stop=(letters_of[4],), min_tokens=4) == (5, "stop") or letters_of[4] in letters_of[:4]


def _run(job: Generate, end_tokens: frozenset[int] = frozenset()) -> list[Event]:
    engine = create()
    engine._end_tokens = end_tokens
    engine.submit(job)
    return drain(engine)


@pytest.mark.parametrize("search", [None, BeamSearchParams(2), ContrastiveSearchParams(2, 0.6)])
def test_the_first_delta_says_how_long_the_prompt_took(
    search: BeamSearchParams | ContrastiveSearchParams | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the slot on: the second request waits for the first, which is no part of it. Each look at the clock takes a second."""
    engine, looks = create(slots=2), itertools.count(100)
    clock = SimpleNamespace(monotonic=lambda: float(next(looks)), perf_counter=lambda: float(next(looks)))
    engine.scheduler._clock = clock.monotonic
    monkeypatch.setattr("app.engine.answers.time", clock)
    monkeypatch.setattr("app.engine.engine.time", clock)
    for name in "ab":
        engine.submit(Generate(name, tuple(range(40)), 30, search=search or BeamSearchParams(2) if name == "a" else search))
    start_s, first_s, events = clock.monotonic(), 0.0, []
    while not engine.idle:
        events += engine.step()
        if not first_s and any(isinstance(event, Delta) and event.id == "b" for event in events):
            first_s = clock.monotonic() - start_s
    deltas = [event for event in events if isinstance(event, Delta) and event.id == "b"]
    assert 0 < deltas[0].prefill_s < first_s / 2
    assert not any(delta.prefill_s for delta in deltas[1:])


def test_a_step_ends_when_the_device_has_computed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured decides how many tokens join later steps; a GPU works on while calls return."""
    engine = create()
    engine.submit(Generate("prompt", tuple(range(40)), 1, SamplingParams(temperature=0.0)))
    waits = []
    monkeypatch.setattr(engine.performer, "wait", lambda: waits.append(engine.scheduler.slots[0].length))
    drain(engine)
    assert waits == [16, 32, 40], "after each chunk, whether it samples or not"


def test_all_cards_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, waits = create_flat_model(tiny("Llama"), CacheLimits(0, CONTEXT)), []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    model.wait()
    model.devices = torch.device("cuda:1"), torch.device("cuda:2")
    model.wait()
    assert waits == [*model.devices]
