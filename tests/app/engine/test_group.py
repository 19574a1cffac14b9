"""Beam search and contrastive search in the engine's loop, beside other requests."""

import random
from functools import cache, partial
from typing import Any

import pytest
import torch
from driving import answers_of, flat_model, generated, random_prompt, reference_model, run_all
from tinymodels import CONTEXT, VOCABULARY, letters
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import MinNewTokensLengthLogitsProcessor, NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor

from app.engine.capacity import CacheLimits
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta, Failed
from app.engine.request import BeamSearchParams, ContrastiveSearchParams, Generate, SamplingParams

NEW = 10
run = partial(run_all, steps_between=2)


def create(name: str = "Llama", slots: int = 6, end_tokens: frozenset[int] = frozenset()) -> Engine:
    performer = flat_model(name, CacheLimits(slots, CONTEXT, page_tokens=16))
    return Engine(performer, letters, end_tokens, EngineLimits(slots, CONTEXT, 16))


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mistral", "Lfm2", "Qwen3.5"])
@pytest.mark.parametrize("end_tokens", [frozenset(), frozenset(range(0, VOCABULARY, 7))])
def test_beam_search_beside_others_equals_generate(name: str, end_tokens: frozenset[int]) -> None:
    rng, model = random.Random(len(end_tokens)), reference_model(name)
    jobs, expected = [], {}
    for index, beams in enumerate((2, 3, 5, 4)):
        ids = random_prompt(rng)
        row = torch.tensor([ids])
        out = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=NEW,
            num_beams=beams,
            do_sample=False,
            eos_token_id=sorted(end_tokens) or None,
        )
        answer = out[0, len(ids) :].tolist()
        while answer and answer[-1] in end_tokens | {0}:
            answer.pop()
        expected[f"beams {index}"] = letters(answer)
        jobs.append(Generate(f"beams {index}", ids, NEW, search=BeamSearchParams(beams)))
        jobs.append(Generate(f"chat {index}", random_prompt(rng), NEW, SamplingParams(seed=index)))
    answers = answers_of(run(create(name, end_tokens=end_tokens), jobs))
    assert {id: answers[id] for id in expected} == expected


class HasStopString(StoppingCriteria):
    """Whether one of the stop strings is in the answer."""

    def __init__(self, prompt_tokens: int, stop: tuple[str, ...]) -> None:
        self.prompt_tokens, self.stop = prompt_tokens, stop

    def __call__(self, input_ids: torch.LongTensor, scores: object, **_: object) -> torch.BoolTensor:
        answers = [letters(row[self.prompt_tokens :]) for row in input_ids.tolist()]
        return torch.tensor([any(stop in answer for stop in self.stop) for answer in answers])  # type: ignore[return-value]


def cut(text: str, stop_strings: tuple[str, ...]) -> str:
    """The text before the first stop string."""
    return text[: min([at for stop in stop_strings if (at := text.find(stop)) >= 0], default=len(text))]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.7},
    {"min_tokens": 6},
    {"bad": True},
    {"stop": True},
    {"stop": True, "bad": True},
]


def params_changing(options: dict[str, Any], answer: str) -> tuple[SamplingParams, tuple[str, ...]]:
    """Sampling parameters and stop strings under which the answer cannot be `answer`, which comes without them."""
    tokens = [ord(letter) - 0x4E00 for letter in answer]
    bad = ((tokens[1],), (tokens[3], tokens[4])) if options.get("bad") else ()
    stop = (answer[2:4], answer[6]) if options.get("stop") else ()
    sampling = SamplingParams(
        0.0, repetition_penalty=options.get("repetition_penalty", 1.0), min_tokens=options.get("min_tokens", 0), bad_words=bad
    )
    return sampling, stop


@cache
def plain_beam(ids: tuple[int, ...]) -> str:
    return answers_of(run(create(), [Generate("plain", ids, NEW, search=BeamSearchParams(3))]))["plain"]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("early", [False, True])
def test_beam_search_applies_penalties_bans_and_stop_strings_like_generate(options: dict[str, Any], early: bool) -> None:
    rng, model = random.Random(5), reference_model("Llama")
    for seed in range(3):
        ids = random_prompt(rng)
        plain = plain_beam(ids)
        end_tokens = frozenset({ord(plain[4]) - 0x4E00}) if "min_tokens" in options else frozenset()
        sampling, stop = params_changing(options, plain)
        row = torch.tensor([ids])
        out = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=NEW,
            num_beams=3,
            do_sample=False,
            early_stopping=early,
            eos_token_id=sorted(end_tokens) or None,
            repetition_penalty=sampling.repetition_penalty,
            min_new_tokens=sampling.min_tokens or None,
            bad_words_ids=[list(word) for word in sampling.bad_words] or None,
            stopping_criteria=StoppingCriteriaList([HasStopString(len(ids), stop)]),
        )
        answer = out[0, len(ids) :].tolist()
        expected = cut(letters([token for token in answer if token not in end_tokens | {0}]), stop)
        job = Generate("search", ids, NEW, sampling, stop, search=BeamSearchParams(3, early_stopping=early))
        assert answers_of(run(create(end_tokens=end_tokens), [job]))["search"] == expected, seed


@cache
@torch.inference_mode()
def contrastive(name: str, ids: tuple[int, ...], search: ContrastiveSearchParams, processors: tuple[LogitsProcessor, ...] = ()) -> str:
    """The answer by definition: a full forward of all that each candidate would follow."""
    model, tokens = reference_model(name), list(ids)

    def forward(rows: list[list[int]]) -> torch.Tensor:
        return model.base_model(torch.tensor(rows)).last_hidden_state

    for _ in range(NEW):
        hidden = forward([tokens])[0]
        logits = LogitsProcessorList(processors)(torch.tensor([tokens]), model.get_output_embeddings()(hidden[-1:]))[0]
        top = logits.softmax(-1).topk(search.top_k)
        states = forward([[*tokens, candidate] for candidate in top.indices.tolist()])[:, -1]
        scores = []
        for probability, state in zip(top.values.tolist(), states, strict=True):
            similarity = torch.nn.functional.cosine_similarity(hidden, state[None]).max()
            scores.append((1 - search.penalty_alpha) * probability - search.penalty_alpha * float(similarity))
        tokens.append(top.indices.tolist()[scores.index(max(scores))])
    return letters(tokens[len(ids) :])


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_contrastive_search_beside_others_equals_its_definition(name: str) -> None:
    rng = random.Random(8)
    searches = [ContrastiveSearchParams(4, 0.6), ContrastiveSearchParams(3, 0.3), ContrastiveSearchParams(2, 0.0)]
    jobs = [Generate(f"search {index}", random_prompt(rng), NEW, search=search) for index, search in enumerate(searches)]
    chats = [Generate(f"chat {index}", random_prompt(rng), NEW, SamplingParams(seed=index)) for index in range(3)]
    events = run(create(name), [job for pair in zip(jobs, chats, strict=True) for job in pair])
    answers = answers_of(events)
    assert {job.id: answers[job.id] for job in jobs} == {
        job.id: contrastive(name, job.prompt, search) for job, search in zip(jobs, searches, strict=True)
    }
    assert sum(event.id == "search 0" for event in events if isinstance(event, Delta)) == NEW  # it streams


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_contrastive_search_applies_penalties_bans_and_stop_strings(options: dict[str, Any]) -> None:
    rng, search = random.Random(6), ContrastiveSearchParams(3, 0.4)
    for _ in range(3):
        ids = random_prompt(rng)
        plain = contrastive("Llama", ids, search)
        sampling, stop = params_changing(options, plain)
        end_tokens = frozenset({ord(plain[4]) - 0x4E00}) if sampling.min_tokens else frozenset()
        processors: list[LogitsProcessor] = [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
        if sampling.bad_words:
            processors.append(NoBadWordsLogitsProcessor([list(word) for word in sampling.bad_words]))
        if sampling.min_tokens:
            processors.append(MinNewTokensLengthLogitsProcessor(len(ids), sampling.min_tokens, sorted(end_tokens), device="cpu"))
        expected = contrastive("Llama", ids, search, tuple(processors))
        end_letters = tuple(letters([token]) for token in end_tokens)
        head = expected[: sampling.min_tokens]
        expected = head + cut(expected[len(head) :], end_letters + stop) if end_tokens else cut(expected, stop)
        answer = answers_of(run(create(end_tokens=end_tokens), [Generate("search", ids, NEW, sampling, stop, search=search)]))["search"]
        assert answer == expected
        assert (answer == plain) == (not options)


def test_a_conversation_continues_from_the_cache_of_a_search() -> None:
    rng = random.Random(3)
    for search in (BeamSearchParams(3), ContrastiveSearchParams(3, 0.5)):
        engine, ids = create(), tuple(rng.randrange(VOCABULARY) for _ in range(40))
        answer = answers_of(run(engine, [Generate("search", ids, NEW, search=search)]))["search"]
        longer = ids + tuple(ord(letter) - 0x4E00 for letter in answer) + (5, 6)
        events = run(engine, [Generate("on", longer, NEW, SamplingParams(temperature=0.0))])
        assert answers_of(events)["on"] == letters(list(generated("Llama", longer, NEW)))
        assert next(event.cached for event in events if isinstance(event, Delta)) >= 40


def test_a_cancelled_search_frees_all_its_slots_and_the_next_one_runs() -> None:
    engine = create(slots=3)
    engine.submit(Generate("gone", (1, 2, 3), 50, search=BeamSearchParams(3)))
    for _ in range(4):
        engine.step()
    assert engine.cancel("gone")
    answers = answers_of(run(engine, [Generate("next", (1, 2, 3), NEW, search=ContrastiveSearchParams(3, 0.5))]))
    assert len(answers["next"]) == NEW
    assert all(slot.request is None and not slot.group for slot in engine.scheduler.slots)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Generate("a", (1,), 4, search=BeamSearchParams(9)), "the search needs 9 slots at once, and the model has 6"),
        (Generate("a", (1,), 4, search=BeamSearchParams(2), logprobs=1), "beam and contrastive search return no log-probabilities"),
        (Generate("a", (1,) * 100, 100), "prompt 100 \\+ max_tokens 100 exceed the context of 128 tokens"),
    ],
)
def test_what_can_never_fit_is_refused_at_once(job: Generate, message: str) -> None:
    engine = create()
    engine.submit(job)
    assert not engine.idle
    (event,) = engine.step()
    assert isinstance(event, Failed) and event.error.status == 400
    with pytest.raises(type(event.error), match=message):
        raise event.error
    assert engine.idle
