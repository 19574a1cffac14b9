"""Beam search and contrastive search in the engine's loop, beside whatever else it does."""

import random
from typing import Any

import pytest
import torch
from conftest import CONTEXT, VOCABULARY, letters, tiny
from driving import drain, prompt, texts
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import MinNewTokensLengthLogitsProcessor, NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor

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


class Says(StoppingCriteria):
    """Whether one of the words is in the answer."""

    def __init__(self, prompt: int, words: tuple[str, ...]) -> None:
        self.prompt, self.words = prompt, words

    def __call__(self, input_ids: torch.LongTensor, scores: object, **_: object) -> torch.BoolTensor:
        answers = [letters(row[self.prompt :]) for row in input_ids.tolist()]
        return torch.tensor([any(word in answer for word in self.words) for answer in answers])  # type: ignore[return-value]


def cut(text: str, words: tuple[str, ...]) -> str:
    return text[: min([at for word in words if (at := text.find(word)) >= 0], default=len(text))]


ASKED: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.7},
    {"min_tokens": 6},
    {"bad": True},
    {"stop": True},
    {"stop": True, "bad": True},
]


def wishes(asked: dict[str, Any], answer: str) -> tuple[Sampling, tuple[str, ...]]:
    """Sampling and stop words, chosen so that `answer`, which is what comes without them, has to be another one."""
    met = [ord(letter) - 0x4E00 for letter in answer]
    bad = ((met[1],), (met[3], met[4])) if asked.get("bad") else ()
    stop = (answer[2:4], answer[6]) if asked.get("stop") else ()
    sampling = Sampling(0.0, repetition_penalty=asked.get("repetition_penalty", 1.0), min_tokens=asked.get("min_tokens", 0), bad_words=bad)
    return sampling, stop


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "+".join(asked) or "plain")
@pytest.mark.parametrize("early", [False, True])
def test_beams_heed_penalties_bans_and_stop_strings_as_generate_does(asked: dict[str, Any], early: bool) -> None:
    rng, model = random.Random(5), tiny("Llama")
    for seed in range(4):
        ids = prompt(rng)
        plain = texts(run(create(), [Generate("plain", ids, NEW, search=Beams(3))]))["plain"]
        ends = frozenset({ord(plain[4]) - 0x4E00}) if "min_tokens" in asked else frozenset()
        sampling, stop = wishes(asked, plain)
        row = torch.tensor([ids])
        out = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=NEW,
            num_beams=3,
            do_sample=False,
            early_stopping=early,
            eos_token_id=sorted(ends) or None,
            repetition_penalty=sampling.repetition_penalty,
            min_new_tokens=sampling.min_tokens or None,
            bad_words_ids=[list(word) for word in sampling.bad_words] or None,
            stopping_criteria=StoppingCriteriaList([Says(len(ids), stop)]),
        )
        answer = out[0, len(ids) :].tolist()
        wanted = cut(letters([token for token in answer if token not in ends | {0}]), stop)
        job = Generate("search", ids, NEW, sampling, stop, search=Beams(3, early_stopping=early))
        assert texts(run(create(ends=ends), [job]))["search"] == wanted, seed


def contrastive(name: str, ids: tuple[int, ...], search: Contrast, processors: LogitsProcessorList | None = None) -> str:
    """The definition, a full forward for each candidate."""
    model, tokens = tiny(name), list(ids)

    def forward(row: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            out = model.base_model(torch.tensor([row])).last_hidden_state[0]
            return out, model.get_output_embeddings()(out[-1])

    for _ in range(NEW):
        hidden, logits = forward(tokens)
        if processors is not None:
            logits = processors(torch.tensor([tokens]), logits[None])[0]
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


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "+".join(asked) or "plain")
def test_contrastive_search_heeds_penalties_bans_and_stop_strings(asked: dict[str, Any]) -> None:
    rng, search = random.Random(6), Contrast(3, 0.4)
    for _ in range(3):
        ids = prompt(rng)
        plain = contrastive("Llama", ids, search)
        sampling, stop = wishes(asked, plain)
        ends = frozenset({ord(plain[4]) - 0x4E00}) if sampling.min_tokens else frozenset()
        processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
        if sampling.bad_words:
            processors.append(NoBadWordsLogitsProcessor([list(word) for word in sampling.bad_words]))
        if sampling.min_tokens:
            processors.append(MinNewTokensLengthLogitsProcessor(len(ids), sampling.min_tokens, sorted(ends), device="cpu"))
        wanted = contrastive("Llama", ids, search, processors)
        ended = tuple(letters([token]) for token in ends)
        head = wanted[: sampling.min_tokens]
        wanted = head + cut(wanted[len(head) :], ended + stop) if ends else cut(wanted, stop)
        found = texts(run(create(ends=ends), [Generate("search", ids, NEW, sampling, stop, search=search)]))["search"]
        assert found == wanted
        assert (found == plain) == (not asked)


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
