"""Beam search and contrastive search in the engine's loop, beside whatever else it does."""

import random

import pytest
import torch
from conftest import CONTEXT, VOCABULARY, letters, tiny
from driving import drain, prompt, texts

from app.engine.engine import Engine, Limits
from app.engine.flat import Room, adopt
from app.engine.request import Beams, Contrast, Delta, Event, Failed, Generate, Sampling

NEW = 10


def create(name: str = "Llama", slots: int = 6, ends: frozenset[int] = frozenset()) -> Engine:
    return Engine(adopt(tiny(name), Room(slots, CONTEXT)), letters, ends, Limits(slots, CONTEXT, 16))


def run(engine: Engine, jobs: list[Generate], every: int = 2) -> list[Event]:
    events: list[Event] = []
    for job in jobs:
        engine.submit(job)
        for _ in range(every):
            events += engine.step()
    return events + drain(engine)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mistral"])
@pytest.mark.parametrize("ends", [frozenset(), frozenset(range(0, VOCABULARY, 7))])
def test_beams_equal_generate_in_a_crowd(name: str, ends: frozenset[int]) -> None:
    rng, model = random.Random(len(ends)), tiny(name)
    jobs, wanted = [], {}
    for index, beams in enumerate((2, 3, 5, 4)):
        ids = prompt(rng)
        row = torch.tensor([ids])
        out = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=NEW,
            num_beams=beams,
            do_sample=False,
            eos_token_id=sorted(ends) or None,
        )
        answer = out[0, len(ids) :].tolist()
        while answer and answer[-1] in ends | {0}:
            answer.pop()
        wanted[f"beams {index}"] = letters(answer)
        jobs.append(Generate(f"beams {index}", ids, NEW, search=Beams(beams)))
        jobs.append(Generate(f"chat {index}", prompt(rng), NEW, Sampling(seed=index)))
    found = texts(run(create(name, ends=ends), jobs))
    assert {id: found[id] for id in wanted} == wanted


def contrastive(name: str, ids: tuple[int, ...], search: Contrast) -> str:
    """The definition, a full forward for each candidate."""
    model, tokens = tiny(name), list(ids)

    def forward(row: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            out = model.base_model(torch.tensor([row])).last_hidden_state[0]
            return out, model.get_output_embeddings()(out[-1])

    for _ in range(NEW):
        hidden, logits = forward(tokens)
        top = logits.softmax(-1).topk(search.top_k)
        scores = []
        for probability, candidate in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            state = forward([*tokens, candidate])[0][-1]
            likeness = torch.nn.functional.cosine_similarity(hidden, state[None]).max()
            scores.append((1 - search.penalty_alpha) * probability - search.penalty_alpha * float(likeness))
        tokens.append(top.indices.tolist()[scores.index(max(scores))])
    return letters(tokens[len(ids) :])


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_contrastive_search_is_its_definition_in_a_crowd(name: str) -> None:
    rng = random.Random(8)
    search = [Contrast(4, 0.6), Contrast(3, 0.3), Contrast(2, 0.0)]
    jobs = [Generate(f"search {index}", prompt(rng), NEW, search=each) for index, each in enumerate(search)]
    chats = [Generate(f"chat {index}", prompt(rng), NEW, Sampling(seed=index)) for index in range(3)]
    events = run(create(name), [job for pair in zip(jobs, chats, strict=True) for job in pair])
    found = texts(events)
    assert {job.id: found[job.id] for job in jobs} == {
        job.id: contrastive(name, job.prompt, each) for job, each in zip(jobs, search, strict=True)
    }
    assert sum(event.id == "search 0" for event in events if isinstance(event, Delta)) == NEW  # it streams


def test_after_a_search_the_conversation_goes_on_from_the_cache_and_is_right() -> None:
    rng, model = random.Random(3), tiny("Llama")
    for search in (Beams(3), Contrast(3, 0.5)):
        engine, ids = create(), tuple(rng.randrange(VOCABULARY) for _ in range(40))
        said = texts(run(engine, [Generate("search", ids, NEW, search=search)]))["search"]
        longer = ids + tuple(ord(letter) - 0x4E00 for letter in said) + (5, 6)
        events = run(engine, [Generate("on", longer, NEW, Sampling(temperature=0.0))])
        row = torch.tensor([longer])
        out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert texts(events)["on"] == letters(out[0, len(longer) :].tolist())
        assert next(event.cached for event in events if isinstance(event, Delta)) >= 40


def test_a_cancelled_search_frees_all_its_slots_and_the_next_one_runs() -> None:
    engine = create(slots=3)
    engine.submit(Generate("gone", (1, 2, 3), 50, search=Beams(3)))
    for _ in range(4):
        engine.step()
    assert engine.cancel("gone")
    found = texts(run(engine, [Generate("next", (1, 2, 3), NEW, search=Contrast(3, 0.5))]))
    assert len(found["next"]) == NEW
    assert all(slot.request is None and not slot.group for slot in engine.scheduler.slots)


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (Generate("a", (1,), 4, search=Beams(9)), "the search needs 9 slots at once and there are 6"),
        (Generate("a", (1,), 4, search=Beams(2), logprobs=1), "a search has no log-probabilities"),
        (Generate("a", (1,) * 100, 100), "prompt 100 \\+ max_tokens 100 are more than the 128 tokens of a slot"),
    ],
)
def test_what_can_never_fit_is_refused_at_once(job: Generate, says: str) -> None:
    engine = create()
    engine.submit(job)
    assert not engine.idle
    (event,) = engine.step()
    assert isinstance(event, Failed) and event.error.status == 400
    with pytest.raises(type(event.error), match=says):
        raise event.error
    assert engine.idle
