"""The searches, driven without any cache, against transformers' own beam search and against the paper's equation in loops."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from conftest import VOCABULARY, tiny
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from app.engine.request import Beams, Contrast
from app.engine.search import BeamSearch, ContrastiveSearch, Move

NEW = 12


def prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20))]


def follow(rows: list[list[int]], move: Move) -> list[list[int]]:
    """Rows after `move`, copied one after another in place as caches would be."""
    for place, source in enumerate(move.sources):
        rows[place] = list(rows[source])
    return [[*row, token] for row, token in zip(rows, move.tokens, strict=True)]


@torch.inference_mode()
def scores(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    return model(torch.tensor(rows)).logits[:, -1].log_softmax(-1)


def beam(model: PreTrainedModel, ids: list[int], search: BeamSearch, beams: int) -> tuple[list[int], str]:
    rows = [ids] + [[] for _ in range(beams - 1)]
    move = search.start(scores(model, [ids])[0])
    while move is not None:
        rows = follow(rows, move)
        move = search.advance(scores(model, rows))
    return search.best


def golden(model: PreTrainedModel, ids: list[int], search: Beams, ends: frozenset[int]) -> list[int]:
    row = torch.tensor([ids])
    flags = {"length_penalty": search.length_penalty, "early_stopping": search.early_stopping} if search.beams > 1 else {}
    out = model.generate(
        row,
        attention_mask=torch.ones_like(row),
        num_beams=search.beams,
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=sorted(ends) or None,
        **flags,
    )
    return out[0, len(ids) :].tolist()


def likely_ends(rng: random.Random, model: PreTrainedModel, ids: list[int]) -> list[frozenset[int]]:
    """No end token, one and two that a search would take, and very many."""
    met = golden(model, ids, Beams(3), frozenset())
    return [frozenset(), frozenset(met[3:4]), frozenset({met[5], met[9]}), frozenset(rng.sample(range(VOCABULARY), 60))]


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
@pytest.mark.parametrize("beams", range(1, 6))
@pytest.mark.parametrize("length_penalty", [0.5, 1.0, 2.0])
def test_beam_search_equals_generate(name: str, beams: int, length_penalty: float) -> None:
    for seed in range(2):
        rng = random.Random(seed)
        model, ids = tiny(name, seed), prompt(rng)
        for ends in likely_ends(rng, model, ids):
            for search in (Beams(beams, length_penalty, early_stopping) for early_stopping in (False, True)):
                found, finish = beam(model, ids, BeamSearch(search, NEW, ends), beams)
                assert found == golden(model, ids, search, ends)
                assert finish == ("stop" if found[-1] in ends else "length")


class Whole(StoppingCriteria):
    """transformers' word for it, asked about the answer only."""

    def __init__(self, prompt: int, whole: Callable[[Sequence[int]], bool]) -> None:
        self.prompt, self.whole = prompt, whole

    def __call__(self, input_ids: torch.LongTensor, scores: object, **_: object) -> torch.BoolTensor:
        return torch.tensor([self.whole(row[self.prompt :]) for row in input_ids.tolist()])  # type: ignore[return-value]


@pytest.mark.parametrize("share", [20, 5, 2])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_sequences_that_are_whole_by_themselves_end_as_by_generate(share: int, early_stopping: bool) -> None:
    """Also where so many of them end that fewer than `beams` run on."""
    for seed in range(6):
        model, ids, beams = tiny("Llama", seed), prompt(random.Random(seed)), 2 + seed % 4

        def whole(tokens: Sequence[int]) -> bool:
            return len(tokens) > 1 and (tokens[-1] + tokens[-2]) % share == 0

        found, finish = beam(model, ids, BeamSearch(Beams(beams, early_stopping=early_stopping), NEW, frozenset(), whole), beams)
        row = torch.tensor([ids])
        out = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=None,
            early_stopping=early_stopping,
            stopping_criteria=StoppingCriteriaList([Whole(len(ids), whole)]),
        )
        assert found == out[0, len(ids) :].tolist()
        assert finish == ("stop" if whole(found) else "length")


def test_a_vocabulary_of_ends_leaves_nothing_to_search() -> None:
    search = BeamSearch(Beams(2), NEW, frozenset(range(4)))
    assert search.start(torch.tensor([0.1, 0.2, 0.4, 0.3]).log()) is None
    assert search.best == ([2], "stop")


@pytest.mark.parametrize(("ends", "finish"), [({2}, "stop"), ({3}, "length"), (set(), "length")])
def test_an_end_on_the_last_token_is_an_end(ends: set[int], finish: str) -> None:
    search = BeamSearch(Beams(2), 1, frozenset(ends))
    assert search.start(torch.tensor([0.1, 0.2, 0.4, 0.3]).log()) is None
    assert search.best == ([2], finish)


def test_only_beams_without_a_child_are_copied_over() -> None:
    search = BeamSearch(Beams(3), NEW, frozenset())
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


def contrast(model: PreTrainedModel, ids: list[int], search: ContrastiveSearch, part: int) -> list[int]:
    """Tokens of a search whose prompt was read in parts of `part` tokens."""
    logits, hidden = states(model, [ids])
    for piece in hidden[0].split(part):
        search.read(piece)
    move = search.start(logits[0, -1])
    rows, found = [ids] + [[] for _ in move.tokens[1:]], []
    for _ in range(NEW):
        rows = follow(rows, move)
        logits, hidden = states(model, rows)
        chosen, following = search.advance(logits[:, -1], hidden[:, -1])
        found.append(move.tokens[chosen])
        assert following.sources == [chosen] * len(rows)
        move = following
    return found


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def equation_five(model: PreTrainedModel, ids: list[int], search: Contrast) -> list[int]:
    rows = list(ids)
    while len(rows) < len(ids) + NEW:
        logits, hidden = states(model, [rows])
        past = hidden[0].double().tolist()
        probabilities = logits[0, -1].double().softmax(-1).tolist()
        best = (-math.inf, -1)
        for token in sorted(range(VOCABULARY), key=lambda token: -probabilities[token])[: search.top_k]:
            state = states(model, [[*rows, token]])[1][0, -1].double().tolist()
            likeness = max(cosine(state, other) for other in past)
            score = (1 - search.penalty_alpha) * probabilities[token] - search.penalty_alpha * likeness
            best = max(best, (score, token), key=lambda pair: pair[0])
        rows.append(best[1])
    return rows[len(ids) :]


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
@pytest.mark.parametrize("search", [Contrast(4, 0.6), Contrast(8, 0.1), Contrast(5, 1.0), Contrast(1, 0.6)])
def test_contrastive_search_equals_the_equation(name: str, search: Contrast) -> None:
    for seed in range(2):
        model, ids = tiny(name, seed), prompt(random.Random(seed))
        for part in (1, 4, len(ids)):
            assert contrast(model, ids, ContrastiveSearch(search), part) == equation_five(model, ids, search)


def test_without_a_penalty_contrastive_search_is_greedy() -> None:
    model, ids = tiny("Llama"), prompt(random.Random(7))
    assert contrast(model, ids, ContrastiveSearch(Contrast(5, 0.0)), len(ids)) == golden(model, ids, Beams(1), frozenset())


def test_of_equally_good_candidates_the_likelier_is_taken() -> None:
    search = ContrastiveSearch(Contrast(3, 1.0))
    search.read(torch.eye(4))
    move = search.start(torch.tensor([0.1, 0.4, 0.2, 0.3]).log())
    assert move.tokens == [1, 3, 2]
    assert search.advance(torch.zeros(3, 4), torch.ones(3, 4))[0] == 0


def test_what_is_banned_is_not_taken_however_little_it_resembles() -> None:
    """With two tokens left, the third candidate is there for the number only; with one certain, the others have no probability."""
    search = ContrastiveSearch(Contrast(3, 0.9))
    search.read(torch.eye(2)[:1])
    move = search.start(torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf]))
    assert move.tokens[:2] == [2, 1]
    alike, unlike = torch.eye(2)
    assert search.advance(torch.zeros(3, 4), torch.stack([alike, alike, unlike]))[0] == 0
    search = ContrastiveSearch(Contrast(2, 0.9))
    search.read(torch.eye(2)[:1])
    assert search.start(torch.tensor([-torch.inf, -torch.inf, 500.0, 0.0])).tokens == [2, 3]
