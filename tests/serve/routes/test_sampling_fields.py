"""Every sampling field: what reaches the engine."""

from dataclasses import asdict
from typing import Any

import pytest
from fakes import set_defaults

from app.engine.request import Generate, SamplingParams, Score
from app.models.sampling import LLAMA_SERVER
from app.schemas import DefaultSamplingParams, SamplingParameters

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SCORE = "/v1/score"
RESPONSES, MESSAGES, GENERATE = "/v1/responses", "/v1/messages", "/generate"
HELLO = [{"role": "user", "content": "hi"}]


def job_with(served: Any, **fields: Any) -> Generate:
    """The job that the routes make of a request with these fields. Chat and completions must make the same, except for the prompt."""
    jobs = []
    for path, body in ((TEXT, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
        response = served.client.post(path, json={**body, "max_tokens": 2, "seed": 1, **fields})
        assert response.status_code == 200, response.text
        jobs.append(served.engine.submitted[-1])
    assert jobs[0].sampling == jobs[1].sampling
    assert (jobs[0].stop_tokens, jobs[0].ignore_eos, jobs[0].tier) == (jobs[1].stop_tokens, jobs[1].ignore_eos, jobs[1].tier)
    return jobs[0]


def test_without_any_field_sampling_is_plain(served: Any) -> None:
    job = job_with(served)
    assert job.sampling == SamplingParams(seed=1)
    assert job == Generate(job.id, job.prompt, 2, job.sampling)


def test_neutral_values_and_nulls_are_as_if_left_out(served: Any) -> None:
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1, "logit_bias": {"5": 0}, "min_tokens": 0}
    lists = {"bad_words": [], "stop_token_ids": [], "ignore_eos": False}
    assert job_with(served, **neutral, **lists).sampling == SamplingParams(seed=1)
    assert job_with(served, **dict.fromkeys([*neutral, *lists, "service_tier"])).sampling == SamplingParams(seed=1)


def test_every_field_reaches_the_engine(served: Any) -> None:
    job = job_with(
        served,
        presence_penalty=-2,
        frequency_penalty=1.5,
        repetition_penalty=1.3,
        logit_bias={"9": -100, "5": 1.5},
        min_tokens=2,
        stop_token_ids=[7, 7, 3],
        ignore_eos=True,
        service_tier="flex",
    )
    assert job.sampling == SamplingParams(
        seed=1, repetition_penalty=1.3, presence_penalty=-2.0, frequency_penalty=1.5, logit_bias=((5, 1.5), (9, -100.0)), min_tokens=2
    )
    assert (job.stop_tokens, job.ignore_eos, job.tier) == (frozenset({3, 7}), True, "flex")


def test_ids_in_lists_may_be_written_with_a_point(served: Any) -> None:
    job = job_with(served, stop_token_ids=[7.0, 3], allowed_token_ids=[5.0, 9.0])
    assert job.stop_tokens == frozenset({3, 7}) and job.sampling.allowed_tokens == (5, 9)
    for prompt in ([5.0, 9], [[5.0, 9.0]]):
        assert served.client.post(TEXT, json={"prompt": prompt, "max_tokens": 1}).status_code == 200
        assert served.client.post("/v1/embeddings", json={"input": prompt}).status_code == 200
        assert [job.prompt if isinstance(job, Generate) else job.tokens for job in served.engine.submitted[-2:]] == [(5, 9)] * 2
    ids = {"tokens": [5.0, 9]}
    assert served.client.post("/detokenize", json=ids).json() == served.client.post("/detokenize", json={"tokens": [5, 9]}).json()
    for path, field, fields in ((TEXT, "prompt", {}), ("/v1/embeddings", "input", {}), (TEXT, "stop_token_ids", {"prompt": "a"})):
        error = served.client.post(path, json={**fields, field: [5.0, 2.5]}).json()["error"]
        assert error["param"] == f"{field}.1" and "valid integer" in error["message"]


def test_a_seed_of_minus_one_is_no_seed(served: Any) -> None:
    """As with vLLM and llama-server: each answer has a seed of its own."""
    for path, body in (
        (CHAT, {"messages": HELLO, "max_tokens": 1}),
        (TEXT, {"prompt": "a", "max_tokens": 1}),
        (RESPONSES, {"input": "a", "max_output_tokens": 1}),
        (MESSAGES, {"messages": HELLO, "max_tokens": 1}),
        (GENERATE, {"prompt": "a", "max_length": 1, "do_sample": True}),
    ):
        seeds = set()
        for seed in (-1, -1.0):
            response = served.client.post(path, json={**body, "seed": seed})
            assert response.status_code == 200, response.text
            seeds.add(served.engine.submitted[-1].sampling.seed)
        assert len(seeds) == 2 and min(seeds) >= 0
    assert job_with(served, seed=-2).sampling.seed == -2


def test_llama_servers_names_mean_the_same(served: Any) -> None:
    named = job_with(served, max_tokens=None, n_predict=2, repeat_penalty=1.3, cache_prompt=True, stop=["a"] * 32)
    assert (named.max_tokens, named.sampling, len(named.stop)) == (2, SamplingParams(seed=1, repetition_penalty=1.3), 32)
    assert job_with(served, n_predict=2, repeat_penalty=1, repetition_penalty=1).sampling == SamplingParams(seed=1)
    set_defaults(served, DEFAULTS)
    assert job_with(served, repeat_penalty=1).sampling.repetition_penalty == 1, "it wins over the model's default"
    for path, body in ((TEXT, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
        response = served.client.post(path, json={**body, "cache_prompt": False})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "cache_prompt")


@pytest.mark.parametrize("name", ["max_tokens", "n_predict", "max_completion_tokens"])
def test_minus_one_token_is_no_limit(served: Any, name: str) -> None:
    for path, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"})):
        if path == TEXT and name == "max_completion_tokens":
            continue
        response = served.client.post(path, json={**body, name: -1})
        assert response.status_code == 200, response.text
        job = served.engine.submitted[-1]
        assert len(job.prompt) + job.max_tokens == 64, "the whole context"


def test_special_tokens_are_added_as_asked(served: Any) -> None:
    def prompt(path: str, **body: Any) -> tuple[int, ...]:
        response = served.client.post(path, json={"max_tokens": 1, **body})
        assert response.status_code == 200, response.text
        return tuple(served.engine.submitted[-1].prompt)

    bos, a = served.tokenizer.encode("a", "prompt")
    for body in ({"prompt": "a"}, {"prompt": "a", "echo": True}, {"prompt": "a", "echo": True, "logprobs": 1}):
        assert prompt(TEXT, **body) == prompt(TEXT, **body, add_special_tokens=True) == (bos, a)
        assert prompt(TEXT, **body, add_special_tokens=False) == (a,)
    assert prompt(TEXT, prompt=[a, a], add_special_tokens=True) == (a, a), "token ids are as they are"
    rendered = prompt(CHAT, messages=HELLO)
    assert prompt(CHAT, messages=HELLO, add_special_tokens=False) == rendered
    assert prompt(CHAT, messages=HELLO, add_special_tokens=True) == (bos, *rendered)


def test_a_prediction_reaches_the_engine_as_tokens_of_its_own(served: Any) -> None:
    a, b = served.tokenizer.encode("ab", "prompt", add_special_tokens=False)
    content = [{"type": "text", "text": "ab"}, {"type": "text", "text": "a"}]
    for prediction, tokens in (({"type": "content", "content": content}, (a, b, a)), ({"type": "content", "content": ""}, ()), (None, ())):
        response = served.client.post(CHAT, json={"messages": HELLO, "max_tokens": 2, "prediction": prediction})
        assert response.status_code == 200 and served.engine.submitted[-1].prediction == tokens
    refused = served.client.post(CHAT, json={"messages": HELLO, "prediction": {"type": "image", "content": "x"}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prediction.type")


def test_bad_words_are_banned_with_and_without_a_blank(served: Any) -> None:
    """In this vocabulary a letter is a token, so a word with a leading space ends with the word itself, which is banned already."""
    a, b = served.tokenizer.encode("ab", "prompt")[1:]
    assert job_with(served, bad_words=["ab", " ab", "b"]).sampling.bad_words == ((a, b), (b,))


DEFAULTS = SamplingParams(0.6, 20, 0.9, 0.02, 1, 1.1, 0.5, -0.25)


def test_a_parameter_that_a_request_leaves_out_has_the_models_default(served: Any) -> None:
    set_defaults(served, DEFAULTS)
    assert job_with(served).sampling == DEFAULTS == job_with(served, **dict.fromkeys(SamplingParameters.model_fields)).sampling


def test_the_card_shows_the_defaults_that_a_request_gets(served: Any) -> None:
    set_defaults(served, DEFAULTS)
    shown = served.client.get("/v1/models").json()["data"][0]["default_sampling_params"]
    used = asdict(job_with(served).sampling)
    assert shown == {name: used[name] for name in SamplingParameters.model_fields}
    assert set(DefaultSamplingParams.model_fields) == set(SamplingParameters.model_fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", 1),
        ("top_p", 1),
        ("top_k", 0),
        ("top_k", -1),
        ("min_p", 0),
        ("presence_penalty", 0),
        ("frequency_penalty", 0),
        ("repetition_penalty", 1),
    ],
)
def test_the_request_wins_over_the_models_defaults_one_by_one(served: Any, field: str, value: float) -> None:
    """0 and other neutral values are values, too."""
    set_defaults(served, DEFAULTS)
    assert asdict(job_with(served, **{field: value}).sampling) == {**asdict(DEFAULTS), field: max(value, 0)}


def test_what_is_accepted_without_defaults_is_accepted_with_them(served: Any) -> None:
    set_defaults(served, LLAMA_SERVER)
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": {"type": "integer"}}}
    bans = {"logit_bias": {"5": 100, "9": -100}, "bad_words": ["b"], "min_tokens": 2, "stop_token_ids": [7]}
    for path, fields in (
        (TEXT, {"best_of": 3, "n": 2, "logprobs": 2}),
        (TEXT, {"echo": True, "max_tokens": 0, "logprobs": 1}),
        (TEXT, {"temperature": 0, **bans}),
        (CHAT, {"logprobs": True, "top_logprobs": 20, "n": 3, "stream": True}),
        (CHAT, {"response_format": form}),
        (CHAT, {"temperature": 0, "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.2}),
    ):
        body = {"prompt": "a"} if path == TEXT else {"messages": HELLO}
        response = served.client.post(path, json={**body, "max_tokens": 4, **fields})
        assert response.status_code == 200, response.text
        sampling = served.engine.submitted[-1].sampling
        assert (sampling.top_k, sampling.top_p, sampling.min_p) == (40, 0.95, 0.05)
        assert sampling.temperature == fields.get("temperature", 0.8)


@pytest.mark.parametrize(
    ("tier", "used"), [("auto", "default"), ("default", "default"), ("flex", "flex"), ("priority", "default"), ("scale", "default")]
)
def test_the_tier_is_named_in_the_answer(served: Any, tier: str, used: str) -> None:
    for path, body in ((TEXT, {"prompt": "a", "max_tokens": 1}), (CHAT, {"messages": HELLO, "max_tokens": 1}), (SCORE, {"text": "abc"})):
        response = served.client.post(path, json={**body, "service_tier": tier})
        assert response.json()["service_tier"] == used
        assert response.headers.get("X-Litmus-Ignored") == ("service_tier" if tier in {"priority", "scale"} else None)
        assert served.engine.submitted[-1].tier == used
        assert served.client.post(path, json=body).json()["service_tier"] is None
        assert served.engine.submitted[-1].tier == "default"
    assert isinstance(served.engine.submitted[-1], Score)
    text = served.client.post(TEXT, json={"prompt": "a", "max_tokens": 1, "stream": True, "service_tier": tier}).text
    assert text.count(f'"service_tier":"{used}"') == 2


def test_what_nobody_limits_may_be_shortened_with_the_context(served: Any) -> None:
    """-1 and a chat's default are no limit; 16, a completion's, and what is asked for are."""
    chat, text = {"messages": [{"role": "user", "content": "a"}]}, {"prompt": "a"}
    bodies = [("/v1/chat/completions", {**chat, **more}) for more in ({}, {"max_tokens": -1}, {"max_tokens": 7})]
    bodies += [("/v1/completions", {**text, **more}) for more in ({}, {"max_tokens": -1}, {"max_tokens": 7})]
    bodies += [("/generate", {"prompt": "a", "max_length": 7})]
    for path, body in bodies:
        assert served.client.post(path, json=body).status_code == 200, path
    assert [job.unlimited for job in served.engine.submitted] == [True, True, False, False, True, False, False]
