"""Every kind of request at once, in every precision: each is answered as it is alone."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from inprocess import CHAT, TEXT, LocalModel, LocalServer
from precisions.conftest import BYTES, PRECISIONS

WORDS = "fox crow king wolf girl bear lamp ship tower garden mouse giant".split()
PASSING = frozenset({"id", "created", "timing", "prompt_tokens_details", "completion_tokens_details"})  # differ from answer to answer
CHOICE = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["fox", "crow", "wolf"]}}}
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 5}
CALL = {"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {"numbers": NUMBERS}}}}


def prompt(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Two of each kind, of different lengths; prompts and texts of more than one step among them."""
    rng = random.Random(1)
    kinds: list[tuple[str, dict[str, Any]]] = []
    for seed in (1, 2):
        message = [{"role": "user", "content": prompt(rng, 4)}]
        kinds += [
            (CHAT, {"messages": message, "seed": seed, "temperature": 1.1, "max_tokens": 30, "logprobs": True, "top_logprobs": 3}),
            (CHAT, {"messages": message, "seed": seed, "temperature": 1.3, "max_tokens": 60, "response_format": CHOICE}),
            (CHAT, {"messages": message, "seed": seed, "temperature": 1.3, "max_tokens": 60, "tools": [CALL], "tool_choice": "required"}),
            (TEXT, {"prompt": prompt(rng, 40), "seed": seed, "temperature": 0.9, "top_p": 0.9, "max_tokens": 20, "frequency_penalty": 1}),
            (TEXT, {"prompt": prompt(rng, 3), "seed": seed, "n": 2, "best_of": 3, "temperature": 1.5, "max_tokens": 16, "min_p": 0.02}),
            (TEXT, {"prompt": prompt(rng, 30), "temperature": 0, "echo": True, "logprobs": 2, "max_tokens": 12, "service_tier": "flex"}),
            ("/generate", {"prompt": prompt(rng, 6), "num_beams": 3, "max_length": 12}),
            ("/generate", {"prompt": prompt(rng, 6), "penalty_alpha": 0.6, "top_k": 3, "max_length": 12}),
            ("/v1/score", {"texts": [prompt(rng, 20), prompt(rng, 90)], "granularity": "token"}),
            ("/v1/score", {"text": prompt(rng, 30), "methods": ["fast_detect", "log_rank"], "granularity": "sentence"}),
        ]
    return kinds


def check_same(one: Any, other: Any, where: str = "") -> None:
    """Numbers may differ by what float32 sums differ by; whatever passes is not looked at."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - PASSING:
            check_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            check_same(*pair, f"{where}.{place}")
    elif where.endswith(".rank"):
        assert abs(one - other) <= 1, where  # two tokens may be as likely but for those digits
    elif isinstance(one, float):
        assert math.isclose(one, other, rel_tol=1e-5, abs_tol=2e-4), (where, one, other)
    else:
        assert one == other, where


@pytest.mark.parametrize("model", [*PRECISIONS, BYTES], indirect=True)
def test_each_is_answered_as_it_is_alone(steady: LocalModel) -> None:
    sent = requests()
    random.Random(0).shuffle(sent)
    alone = [steady.post(path, **body) for path, body in sent]
    with ThreadPoolExecutor(len(sent)) as pool:
        together = list(pool.map(lambda request: steady.post(request[0], **request[1]), sent))
    for (path, body), one, other in zip(sent, alone, together, strict=True):
        check_same(one, other, f"{path} {sorted(body)}")


def test_a_score_does_not_depend_on_the_type_of_the_cache(server: LocalServer) -> None:
    """Though it takes several steps, and an answer's log-probabilities do."""
    plain, rounded = server.model("bfloat16"), server.model(BYTES)
    if not plain.engine.performer.is_on_kernel:
        pytest.skip("a cache in 8 bits needs the compiled kernel")
    text = prompt(random.Random(5), 90)
    body = {"text": text, "granularity": "token"}
    assert len(plain.encode(text)) > 2 * plain.engine.limits.step_tokens
    check_same(*({**each.post("/v1/score", **body), "model": None, "system_fingerprint": None} for each in (plain, rounded)))
    read = [each.complete(text, echo=True, logprobs=0, max_tokens=1)["logprobs"]["token_logprobs"][1:-1] for each in (plain, rounded)]
    assert read[0] != read[1] and read[0] == pytest.approx(read[1], abs=0.3)
