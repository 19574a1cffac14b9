"""Beam search against transformers', contrastive search against the paper's equation in plain loops; both without any cache."""

import math
import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from tinymodels import VOCABULARY, tiny
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from app.engine.request import BeamSearchParams, ContrastiveSearchParams
from app.engine.search import BeamSearch, Continuation, ContrastiveSearch

NEW = 12


def prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20))]


def follow(rows: list[list[int]], continuation: Continuation) -> list[list[int]]:
    """The rows after `continuation`, copied one after another in place, as caches are."""
    for branch, source in enumerate(continuation.sources):
        rows[branch] = list(rows[source])
    return [[*row, token] for row, token in zip(rows, continuation.tokens, strict=True)]


@cache
@torch.inference_mode()
def scores(model: PreTrainedModel, rows: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """Kept: searches that end differently begin with the same rows."""
    return model(torch.tensor(rows)).logits[:, -1].log_softmax(-1)


def beam(model: PreTrainedModel, ids: list[int], search: BeamSearch, beams: int) -> tuple[list[int], str]:
    rows = [ids] + [[] for _ in range(beams - 1)]
    continuation = search.start(scores(model, (tuple(ids),))[0])
    while continuation is not None:
        rows = follow(rows, continuation)
        continuation = search.advance(scores(model, tuple(map(tuple, rows))))
    return search.best


def golden(model: PreTrainedModel, ids: list[int], search: BeamSearchParams, end_tokens: frozenset[int]) -> list[int]:
    flags = {"length_penalty": search.length_penalty, "early_stopping": search.early_stopping} if search.beams > 1 else {}
    return list(generated(model, tuple(ids), search.beams, end_tokens, **flags))


@cache
def generated(model: PreTrainedModel, ids: tuple[int, ...], beams: int, end_tokens: frozenset[int], **flags: float) -> tuple[int, ...]:
    """Kept: with one beam there are no flags, and searches that differ in them are asked about the same."""
    row = torch.tensor([ids])
    out = model.generate(
        row,
        attention_mask=torch.ones_like(row),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=sorted(end_tokens) or None,
        **flags,
    )
    return tuple(out[0, len(ids) :].tolist())


def draw_end_tokens(rng: random.Random, model: PreTrainedModel, ids: list[int]) -> list[frozenset[int]]:
    """No end token, one and two that a search would choose, and very many."""
    answer = golden(model, ids, BeamSearchParams(3), frozenset())
    return [frozenset(), frozenset(answer[3:4]), frozenset({answer[5], answer[9]}), frozenset(rng.sample(range(VOCABULARY), 60))]


@cache
def shallow(seed: int) -> PreTrainedModel:
    """A search sees numbers, not what computes them: one layer is enough."""
    model = tiny("Llama", seed)
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    return model


@cache
def case(seed: int) -> tuple[PreTrainedModel, list[int], list[frozenset[int]]]:
    """A model, a prompt and sets of end tokens."""
    rng = random.Random(seed)
    model, ids = shallow(seed), prompt(rng)
    return model, ids, draw_end_tokens(rng, model, ids)


@pytest.mark.parametrize("beams", range(1, 6))
@pytest.mark.parametrize("length_penalty", [0.5, 1.0, 2.0])
def test_beam_search_equals_generate(beams: int, length_penalty: float) -> None:
    for seed in range(2):
        model, ids, end_tokens_of_case = case(seed)
        for end_tokens in end_tokens_of_case:
            for search in (BeamSearchParams(beams, length_penalty, early_stopping) for early_stopping in (False, True)):
                answer, finish = beam(model, ids, BeamSearch(search, NEW, end_tokens), beams)
                assert answer == golden(model, ids, search, end_tokens)
                assert finish == ("stop" if answer[-1] in end_tokens else "length")


class IsComplete(StoppingCriteria):
    """The same predicate as a criterion of transformers; it sees the answer without the prompt."""

    def __init__(self, prompt_tokens: int, is_complete: Callable[[Sequence[int]], bool]) -> None:
        self.prompt_tokens, self.is_complete = prompt_tokens, is_complete

    def __call__(self, input_ids: torch.LongTensor, scores: object, **_: object) -> torch.BoolTensor:
        return torch.tensor([self.is_complete(row[self.prompt_tokens :]) for row in input_ids.tolist()])  # type: ignore[return-value]


@pytest.mark.parametrize("share", [20, 5, 2])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_sequences_that_are_complete_without_an_end_token_end_as_in_generate(share: int, early_stopping: bool) -> None:
    """Also where so many of them end that fewer than `beams` are left to continue."""
    for seed in range(6):
        model, ids, beams = shallow(seed), prompt(random.Random(seed)), 2 + seed % 4

        def is_complete(tokens: Sequence[int]) -> bool:
            return len(tokens) > 1 and (tokens[-1] + tokens[-2]) % share == 0

        answer, finish = beam(
            model, ids, BeamSearch(BeamSearchParams(beams, early_stopping=early_stopping), NEW, frozenset(), is_complete), beams
        )
        row = torch.tensor([ids])
        out = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=None,
            early_stopping=early_stopping,
            stopping_criteria=StoppingCriteriaList([IsComplete(len(ids), is_complete)]),
        )
        assert answer == out[0, len(ids) :].tolist()
        assert finish == ("stop" if is_complete(answer) else "length")


def test_the_search_is_over_when_every_token_is_an_end_token() -> None:
    search = BeamSearch(BeamSearchParams(2), NEW, frozenset(range(4)))
    assert search.start(torch.tensor([0.1, 0.2, 0.4, 0.3]).log()) is None
    assert search.best == ([2], "stop")


@pytest.mark.parametrize(("end_tokens", "finish"), [({2}, "stop"), ({3}, "length"), (set(), "length")])
def test_an_end_token_at_max_tokens_finishes_with_stop(end_tokens: set[int], finish: str) -> None:
    search = BeamSearch(BeamSearchParams(2), 1, frozenset(end_tokens))
    assert search.start(torch.tensor([0.1, 0.2, 0.4, 0.3]).log()) is None
    assert search.best == ([2], finish)


def test_only_beams_without_a_child_are_copied_over() -> None:
    search = BeamSearch(BeamSearchParams(3), NEW, frozenset())
    first = search.start(torch.tensor([0.4, 0.3, 0.2, 0.1]).log())
    assert first is not None and first.sources == [0, 0, 0] and first.tokens[0] == 0
    rows = torch.full((3, 4), -9.0)
    rows[1, 3], rows[2, :2] = -1.0, -0.5
    second = search.advance(rows)
    assert second is not None
    assert second.sources == [2, 1, 2] and second.tokens[1] == 3 and {second.tokens[0], second.tokens[2]} == {0, 1}


@torch.inference_mode()
def states(model: PreTrainedModel, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[rows, tokens, vocab]` and last hidden states `[rows, tokens, width]`."""
    out = model(torch.tensor(rows), output_hidden_states=True)
    return out.logits, out.hidden_states[-1]


def run_contrastive(model: PreTrainedModel, ids: list[int], search: ContrastiveSearch, chunk: int) -> list[int]:
    """The tokens that a search chooses when its prompt comes in chunks of `chunk` tokens."""
    logits, hidden = states(model, [ids])
    for states_of_chunk in hidden[0].split(chunk):
        search.add_prompt_states(states_of_chunk)
    continuation = search.start(logits[0, -1])
    rows, answer = [ids] + [[] for _ in continuation.tokens[1:]], []
    for _ in range(NEW):
        rows = follow(rows, continuation)
        logits, hidden = states(model, rows)
        chosen, following = search.advance(logits[:, -1], hidden[:, -1])
        answer.append(continuation.tokens[chosen])
        assert following.sources == [chosen] * len(rows)
        continuation = following
    return answer


def cosine(u: list[float], v: list[float]) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)


def equation_five(model: PreTrainedModel, ids: list[int], search: ContrastiveSearchParams) -> list[int]:
    rows = list(ids)
    while len(rows) < len(ids) + NEW:
        logits, hidden = states(model, [rows])
        past = hidden[0].double().tolist()
        probabilities = logits[0, -1].double().softmax(-1).tolist()
        best = (-math.inf, -1)
        candidates = sorted(range(VOCABULARY), key=lambda token: -probabilities[token])[: search.top_k]
        followed = states(model, [[*rows, token] for token in candidates])[1][:, -1].double().tolist()
        for token, state in zip(candidates, followed, strict=True):
            similarity = max(cosine(state, earlier) for earlier in past)
            score = (1 - search.penalty_alpha) * probabilities[token] - search.penalty_alpha * similarity
            best = max(best, (score, token), key=lambda pair: pair[0])
        rows.append(best[1])
    return rows[len(ids) :]


@pytest.mark.parametrize(
    "search",
    [ContrastiveSearchParams(4, 0.6), ContrastiveSearchParams(8, 0.1), ContrastiveSearchParams(5, 1.0), ContrastiveSearchParams(1, 0.6)],
)
def test_contrastive_search_equals_the_equation(search: ContrastiveSearchParams) -> None:
    for seed in range(2):
        model, ids = shallow(seed), prompt(random.Random(seed))
        expected = equation_five(model, ids, search)
        for chunk in (1, 4, len(ids)):
            assert run_contrastive(model, ids, ContrastiveSearch(search), chunk) == expected


def test_without_a_penalty_contrastive_search_is_greedy() -> None:
    model, ids = shallow(0), prompt(random.Random(7))
    assert run_contrastive(model, ids, ContrastiveSearch(ContrastiveSearchParams(5, 0.0)), len(ids)) == golden(
        model, ids, BeamSearchParams(1), frozenset()
    )


def test_of_equally_good_candidates_the_likelier_is_chosen() -> None:
    search = ContrastiveSearch(ContrastiveSearchParams(3, 1.0))
    search.add_prompt_states(torch.eye(4))
    continuation = search.start(torch.tensor([0.1, 0.4, 0.2, 0.3]).log())
    assert continuation.tokens == [1, 3, 2]
    assert search.advance(torch.zeros(3, 4), torch.ones(3, 4))[0] == 0


def test_a_banned_token_is_not_chosen_however_dissimilar_it_is() -> None:
    """With two tokens allowed, the third candidate only fills up top_k; with one token certain, the others have probability 0."""
    search = ContrastiveSearch(ContrastiveSearchParams(3, 0.9))
    search.add_prompt_states(torch.eye(2)[:1])
    continuation = search.start(torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf]))
    assert continuation.tokens[:2] == [2, 1]
    alike, unlike = torch.eye(2)
    assert search.advance(torch.zeros(3, 4), torch.stack([alike, alike, unlike]))[0] == 0
    search = ContrastiveSearch(ContrastiveSearchParams(2, 0.9))
    search.add_prompt_states(torch.eye(2)[:1])
    assert search.start(torch.tensor([-torch.inf, -torch.inf, 500.0, 0.0])).tokens == [2, 3]
