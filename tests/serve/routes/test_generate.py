"""POST /generate: what each field becomes, and what is refused."""

import asyncio
import json
from typing import Any

import pytest
from fakes import set_defaults

from app.engine.request import BeamSearchParams, ContrastiveSearchParams, Generate, SamplingParams
from app.schemas import GenerateRequest

PATH = "/generate"
FIELDS = (
    "prompt bad_words temperature top_k top_p min_p min_length max_length penalty_alpha repetition_penalty early_stop end_sequence "
    "do_sample num_beams return_prompt seed"
).split()


def job_with(served: Any, **fields: Any) -> Generate:
    """The job that the route makes of a one-letter prompt and these fields."""
    response = served.client.post(PATH, json={"prompt": "a", "max_length": 8, "seed": 1, **fields})
    assert response.status_code == 200, response.text
    job: Generate = served.engine.submitted[-1]
    return job


def test_it_has_gpt_apis_fifteen_fields_min_p_and_the_model() -> None:
    assert list(GenerateRequest.model_fields) == ["model", *FIELDS]


def test_the_default_is_greedy(served: Any) -> None:
    set_defaults(served, SamplingParams(temperature=0.6, top_p=0.9, top_k=5, min_p=0.1))
    job = job_with(served)
    assert job == Generate(job.id, job.prompt, 8, SamplingParams(0.0, seed=1))
    assert GenerateRequest(prompt="a").max_length == 64


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"do_sample": True}, SamplingParams(seed=1)),
        ({"do_sample": True, "temperature": 0.7}, SamplingParams(0.7, seed=1)),
        ({"do_sample": True, "top_k": 5}, SamplingParams(top_k=5, seed=1)),
        ({"do_sample": True, "top_p": 0.5}, SamplingParams(top_p=0.5, seed=1)),
        ({"do_sample": True, "min_p": 0.1}, SamplingParams(min_p=0.1, seed=1)),
        ({"do_sample": True, "seed": -3}, SamplingParams(seed=-3)),
        ({"seed": 4}, SamplingParams(0.0, seed=4)),
        ({"repetition_penalty": 1.3}, SamplingParams(0.0, seed=1, repetition_penalty=1.3)),
        ({"bad_words": ["b"]}, SamplingParams(0.0, seed=1, bad_words=((67,),))),
        ({"min_length": 8}, SamplingParams(0.0, seed=1, min_tokens=8)),
        ({"num_beams": 2}, SamplingParams(0.0, seed=1)),
        ({"num_beams": 2, "min_length": 3, "repetition_penalty": 2}, SamplingParams(0.0, seed=1, repetition_penalty=2.0, min_tokens=3)),
    ],
)
def test_how_tokens_are_drawn(served: Any, fields: dict[str, Any], expected: SamplingParams) -> None:
    assert job_with(served, **fields).sampling == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_beams": 2}, BeamSearchParams(2)),
        ({"num_beams": 2, "early_stop": True}, BeamSearchParams(2, early_stopping=True)),
        ({"penalty_alpha": 0.6, "top_k": 2}, ContrastiveSearchParams(2, 0.6)),
        ({"penalty_alpha": 0, "num_beams": 2}, BeamSearchParams(2)),
        ({"penalty_alpha": 0.0, "do_sample": True, "top_k": 9}, None),
        ({"num_beams": 1, "early_stop": False}, None),
    ],
)
def test_which_search_is_run(served: Any, fields: dict[str, Any], expected: BeamSearchParams | ContrastiveSearchParams | None) -> None:
    assert job_with(served, **fields).search == expected


def test_lengths_and_the_end(served: Any) -> None:
    assert job_with(served, max_length=3).max_tokens == 3
    assert job_with(served, end_sequence="the end").stop == ("the end",)
    assert job_with(served).stop == ()


def test_the_models_own_defaults_are_for_sampling_but_its_penalty_is_for_all(served: Any) -> None:
    set_defaults(served, SamplingParams(0.6, 5, 0.9, 0.05, repetition_penalty=1.1))
    assert job_with(served, do_sample=True).sampling == SamplingParams(0.6, 5, 0.9, 0.05, seed=1, repetition_penalty=1.1)
    neutral = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    assert job_with(served, do_sample=True, **neutral).sampling == SamplingParams(seed=1)
    for search, params in (({"penalty_alpha": 0.6, "top_k": 2}, ContrastiveSearchParams(2, 0.6)), ({"num_beams": 2}, BeamSearchParams(2))):
        job = job_with(served, **search)
        assert (job.search, job.sampling) == (params, SamplingParams(0.0, seed=1, repetition_penalty=1.1))


def test_neutral_values_conflict_with_nothing(served: Any) -> None:
    neutral = {"temperature": 1, "top_p": 1.0, "top_k": 0, "min_p": 0, "bad_words": [], "min_length": 0, "return_prompt": False}
    nothing = dict.fromkeys("temperature top_p top_k bad_words penalty_alpha repetition_penalty end_sequence model".split())
    for fields in (neutral, nothing):
        job = job_with(served, **fields)
        assert job == Generate(job.id, job.prompt, 8, SamplingParams(0.0, seed=1))


def test_answers_have_the_order_of_their_prompts(served: Any) -> None:
    body = served.client.post(PATH, json={"prompt": ["abc", "a", "bb"], "max_length": 2, "seed": 5}).json()
    assert body == {"gen_text": ["4/5/0 4/5/1 ", "2/5/0 2/5/1 ", "3/5/0 3/5/1 "]}
    assert served.router.in_flight == 0


def test_return_prompt_puts_the_prompt_before_the_text(served: Any) -> None:
    fields = {"prompt": ["a b", "c"], "max_length": 1, "seed": 5, "return_prompt": True}
    assert served.client.post(PATH, json=fields).json() == {"gen_text": ["a b4/5/0 ", "c2/5/0 "]}
    assert served.client.post(PATH, json={**fields, "prompt": "a", "return_prompt": False}).json() == {"gen_text": ["2/5/0 "]}


def test_without_a_seed_equal_prompts_get_different_answers(served: Any) -> None:
    one, other = served.client.post(PATH, json={"prompt": ["a", "a"], "max_length": 1, "do_sample": True}).json()["gen_text"]
    assert one != other


@pytest.mark.parametrize(
    ("fields", "param", "message_part"),
    [
        ({"num_beams": 2, "do_sample": True}, "do_sample", "do_sample and num_beams 2"),
        ({"num_beams": 2, "penalty_alpha": 0.5, "top_k": 2}, "penalty_alpha", "penalty_alpha and num_beams 2"),
        ({"do_sample": True, "penalty_alpha": 0.5, "top_k": 2}, "penalty_alpha", "penalty_alpha and do_sample"),
        ({"penalty_alpha": 0.5}, "top_k", "at least 2"),
        ({"penalty_alpha": 0.5, "top_k": 1}, "top_k", "at least 2"),
        ({"temperature": 0.7}, "temperature", "needs do_sample"),
        ({"temperature": 0.7, "num_beams": 2}, "temperature", "needs do_sample"),
        ({"temperature": 0.7, "penalty_alpha": 0.5, "top_k": 2}, "temperature", "needs do_sample"),
        ({"top_p": 0.7}, "top_p", "needs do_sample"),
        ({"min_p": 0.1}, "min_p", "needs do_sample"),
        ({"top_k": 7}, "top_k", "needs do_sample"),
        ({"top_k": 7, "num_beams": 2}, "top_k", "needs do_sample"),
        ({"early_stop": True}, "early_stop", "needs num_beams above 1"),
        ({"early_stop": True, "do_sample": True}, "early_stop", "needs num_beams above 1"),
        ({"min_length": 9}, "min_length", "min_length is 9, but max_length is 8"),
        ({"num_beams": 3}, "num_beams", "num_beams is 3, but the model has 2 slots"),
        ({"penalty_alpha": 0.5, "top_k": 3}, "top_k", "top_k is 3, but the model has 2 slots"),
        ({"max_length": 63}, "max_length", "max_length is 63: together 65, but the context of fake holds 64; ask for at most 62"),
        ({"prompt": "a" * 64}, "prompt", "holds 64"),
        ({"prompt": ["a", "a" * 64]}, "prompt.1", "holds 64"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt.1", "empty"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": ["a"] * 65}, "prompt", "at most 64 items"),
        ({"prompt": [5]}, "prompt.0", "valid string"),
        ({"prompt": ["a"] * 6}, None, "at most 5"),
        ({"bad_words": ["a", ""]}, "bad_words.1", "at least 1 character"),
        ({"bad_words": "a"}, "bad_words", "valid list"),
        ({"do_sample": True, "temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"do_sample": True, "top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"do_sample": True, "top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"do_sample": True, "min_p": 1.1}, "min_p", "less than or equal to 1"),
        ({"min_length": -1}, "min_length", "greater than or equal to 0"),
        ({"max_length": 0}, "max_length", "greater than or equal to 1"),
        ({"penalty_alpha": 1.1, "top_k": 2}, "penalty_alpha", "less than or equal to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"early_stop": "never"}, "early_stop", "valid boolean"),
        ({"end_sequence": ""}, "end_sequence", "at least 1 character"),
        ({"do_sample": 1}, "do_sample", "valid boolean"),
        ({"num_beams": 0}, "num_beams", "greater than or equal to 1"),
        ({"return_prompt": "yes"}, "return_prompt", "valid boolean"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"length_penalty": 1.2}, "length_penalty", "not supported"),
    ],
)
def test_bad_input_is_named(served: Any, fields: dict[str, Any], param: str | None, message_part: str) -> None:
    response = served.client.post(PATH, json={"prompt": "a", "max_length": 8, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message_part in error["message"]
    assert served.engine.submitted == []


def test_an_unknown_model_and_a_lone_surrogate_are_named(served: Any) -> None:
    assert served.client.post(PATH, json={"prompt": "a", "model": "gpt-4"}).json()["error"]["code"] == "model_not_found"
    response = served.client.post(
        PATH, content=b'{"prompt": ["a", "\\ud800"], "max_length": 8}', headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt.1")


def test_a_failed_prompt_fails_the_request_and_cancels_the_others(served: Any) -> None:
    response = served.client.post(PATH, json={"prompt": ["a", "b~"], "max_length": 8})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")
    assert served.engine.cancelled == [served.engine.submitted[0].id]
    assert served.router.in_flight == 0


def test_a_request_that_waited_in_the_queue_is_answered(served: Any) -> None:
    served.engine.queue_steps = 3
    assert served.client.post(PATH, json={"prompt": "a", "max_length": 1, "seed": 2}).json() == {"gen_text": ["2/2/0 "]}


def test_a_client_that_leaves_frees_its_place(served: Any) -> None:
    served.worker.stalled = True

    async def leave() -> None:
        body = json.dumps({"prompt": ["a", "b"], "max_length": 8}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            while len(served.engine.submitted) < 2:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": headers, "http_version": "1.1"}
        await served.client.app(scope, receive, send)

    asyncio.run(leave())
    assert sorted(served.engine.cancelled) == sorted(job.id for job in served.engine.submitted)
    assert served.router.in_flight == 0
