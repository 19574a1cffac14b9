"""Scores of the engine against a slow reference: one text at a time, float64, the papers' formulas written out."""

import copy
import math
import random

import pytest
import torch
from driving import drain
from tinymodels import CONTEXT, VOCABULARY, letters, tiny
from transformers import PreTrainedModel

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Scored
from app.engine.request import Generate, SamplingParams, Score
from app.schemas import Method
from app.scoring.methods import FORMULAS, method_score
from app.scoring.windows import windows

END = 1
NEAR = 1e-4


def reference(performer: PreTrainedModel, observer: PreTrainedModel, tokens: list[int]) -> dict[Method, float]:
    """Binoculars (arXiv 2401.12070, eqs. 1-4 as in its code), Fast-DetectGPT (arXiv 2310.05130, eq. 5), perplexity, mean log rank."""
    with torch.no_grad():
        logits, seen = (model(torch.tensor([tokens])).logits[0, :-1].double() for model in (performer, observer))
    surprise = crossed = ratio = expected = variance = ranks = 0.0
    for row, other, token in zip(logits, seen, tokens[1:], strict=True):
        p, q = torch.softmax(row, -1), torch.softmax(other, -1)
        log_p = torch.log(p)
        surprise -= log_p[token].item()
        crossed -= (q * log_p).sum().item()
        ratio += (log_p[token] - torch.log(q[token])).item()
        mean = (p * log_p).sum().item()
        expected += mean
        variance += (p * (log_p - mean) ** 2).sum().item()
        ranks += math.log(1 + (log_p > log_p[token]).sum().item())
    count = len(tokens) - 1
    return {
        "binoculars": surprise / crossed,
        "likelihood_ratio": ratio / count,
        "fast_detect": (-surprise - expected) / math.sqrt(variance),
        "perplexity": math.exp(surprise / count),
        "log_rank": ranks / count,
    }


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPT2", "GPTNeoX", "OPT"])
def test_scores_equal_a_slow_reference_whatever_else_is_scored(name: str) -> None:
    rng = random.Random(name)
    performer, observer = tiny(name), tiny(name, seed=1)
    slow = copy.deepcopy(performer).double(), copy.deepcopy(observer).double()
    engine = Engine(
        create_flat_model(performer, CacheLimits(2, CONTEXT)),
        letters,
        frozenset({END}),
        EngineLimits(2, CONTEXT, 48),
        create_flat_model(observer, CacheLimits(0, CONTEXT)),
    )
    texts = [[rng.randrange(VOCABULARY) for _ in range(size)] for size in (2, 3, 7, 31, 64, 100, CONTEXT, 17)]
    texts[4][20] = texts[5][3] = texts[5][4] = END  # an end of a text inside a text
    for number, text in enumerate(texts):
        engine.submit(Score(str(number), tuple(text), windows(len(text), CONTEXT), True))
        engine.submit(Generate(f"chat-{number}", tuple(text[:9]), 12, SamplingParams(seed=number)))
    found = {event.id: event.columns for event in drain(engine) if isinstance(event, Scored)}
    assert len(found) == len(texts)
    for number, text in enumerate(texts):
        wanted = reference(*slow, text)
        for method in FORMULAS:
            score = method_score(method, found[str(number)])
            assert score is not None and score == pytest.approx(wanted[method], rel=NEAR, abs=NEAR), (name, len(text), method)


def test_a_text_of_one_token_has_no_score_and_is_never_nan() -> None:
    engine = Engine(create_flat_model(tiny("Llama"), CacheLimits(2, CONTEXT)), letters, frozenset(), EngineLimits(2, CONTEXT, 48))
    for number, text in enumerate([(), (5,)]):
        engine.submit(Score(str(number), text, windows(len(text), CONTEXT)))
    for event in drain(engine):
        assert isinstance(event, Scored) and [method_score(method, event.columns) for method in FORMULAS] == [None] * 5
