"""GPT-API's body: what every field becomes, what is refused, and the real engine against transformers' `generate`."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from fakes import FakeWorker
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving import Running, wait_for
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.engine.engine import Engine, Limits
from app.engine.flat import Room, adopt
from app.engine.request import Beams, Contrast, Facts, Generate, Sampling
from app.schemas import GenerateRequest
from app.tokenizer import Tokenizer
from serve.middleware import install
from serve.routes import create_routes
from serve.workers.router import Router

PATH = "/generate"
FIELDS = (
    "prompt bad_words temperature top_k top_p min_length max_length penalty_alpha repetition_penalty early_stop end_sequence "
    "do_sample num_beams return_prompt seed"
).split()


def asked(served: Any, **fields: Any) -> Generate:
    """The job that a prompt of one letter with these fields becomes."""
    response = served.client.post(PATH, json={"prompt": "a", "max_length": 8, "seed": 1, **fields})
    assert response.status_code == 200, response.text
    found: Generate = served.engine.seen[-1]
    return found


def test_it_has_the_fifteen_fields_and_the_model() -> None:
    assert list(GenerateRequest.model_fields) == ["model", *FIELDS]


def test_left_out_it_is_greedy(served: Any) -> None:
    served.tokenizer.defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 5, "min_p": 0.1}
    job = asked(served)
    assert job == Generate(job.id, job.prompt, 8, Sampling(0.0, seed=1))
    assert GenerateRequest(prompt="a").max_length == 64


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"do_sample": True}, Sampling(seed=1)),
        ({"do_sample": True, "temperature": 0.7}, Sampling(0.7, seed=1)),
        ({"do_sample": True, "top_k": 5}, Sampling(top_k=5, seed=1)),
        ({"do_sample": True, "top_p": 0.5}, Sampling(top_p=0.5, seed=1)),
        ({"do_sample": True, "seed": -3}, Sampling(seed=-3)),
        ({"seed": 4}, Sampling(0.0, seed=4)),
        ({"repetition_penalty": 1.3}, Sampling(0.0, seed=1, repetition_penalty=1.3)),
        ({"bad_words": ["b"]}, Sampling(0.0, seed=1, bad_words=((67,),))),
        ({"min_length": 8}, Sampling(0.0, seed=1, min_tokens=8)),
        ({"num_beams": 2}, Sampling(0.0, seed=1)),
        ({"num_beams": 2, "min_length": 3, "repetition_penalty": 2}, Sampling(0.0, seed=1, repetition_penalty=2.0, min_tokens=3)),
    ],
)
def test_how_tokens_are_drawn(served: Any, fields: dict[str, Any], wanted: Sampling) -> None:
    assert asked(served, **fields).sampling == wanted


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"num_beams": 2}, Beams(2)),
        ({"num_beams": 2, "early_stop": True}, Beams(2, early_stopping=True)),
        ({"penalty_alpha": 0.6, "top_k": 2}, Contrast(2, 0.6)),
        ({"penalty_alpha": 0, "num_beams": 2}, Beams(2)),
        ({"penalty_alpha": 0.0, "do_sample": True, "top_k": 9}, None),
        ({"num_beams": 1, "early_stop": False}, None),
    ],
)
def test_which_search_is_run(served: Any, fields: dict[str, Any], wanted: Beams | Contrast | None) -> None:
    assert asked(served, **fields).search == wanted


def test_lengths_and_the_end(served: Any) -> None:
    assert asked(served, max_length=3).max_tokens == 3
    assert asked(served, end_sequence="the end").stop == ("the end",)
    assert asked(served).stop == ()


def test_the_models_own_defaults_are_for_sampling_but_its_penalty_is_for_all(served: Any) -> None:
    served.tokenizer.defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    assert asked(served, do_sample=True).sampling == Sampling(0.6, 5, 0.9, seed=1, repetition_penalty=1.1)
    assert asked(served, do_sample=True, temperature=1, top_k=0, top_p=1, repetition_penalty=1).sampling == Sampling(seed=1)
    assert asked(served, penalty_alpha=0.6, top_k=2).sampling == Sampling(0.0, seed=1, repetition_penalty=1.1)


def test_what_asks_for_nothing_goes_with_everything(served: Any) -> None:
    neutral = {"temperature": 1, "top_p": 1.0, "top_k": 0, "bad_words": [], "min_length": 0, "return_prompt": False}
    nothing = dict.fromkeys("temperature top_p top_k bad_words penalty_alpha repetition_penalty end_sequence model".split())
    for fields in (neutral, nothing):
        job = asked(served, **fields)
        assert job == Generate(job.id, job.prompt, 8, Sampling(0.0, seed=1))


def test_answers_have_the_order_of_their_prompts(served: Any) -> None:
    body = served.client.post(PATH, json={"prompt": ["abc", "a", "bb"], "max_length": 2, "seed": 5}).json()
    assert body == {"gen_text": ["4/5/0 4/5/1 ", "2/5/0 2/5/1 ", "3/5/0 3/5/1 "]}
    assert served.router.in_flight == 0


def test_a_prompt_may_be_given_back(served: Any) -> None:
    fields = {"prompt": ["a b", "c"], "max_length": 1, "seed": 5, "return_prompt": True}
    assert served.client.post(PATH, json=fields).json() == {"gen_text": ["a b4/5/0 ", "c2/5/0 "]}
    assert served.client.post(PATH, json={**fields, "prompt": "a", "return_prompt": False}).json() == {"gen_text": ["2/5/0 "]}


def test_without_a_seed_the_same_prompt_twice_is_drawn_twice(served: Any) -> None:
    one, other = served.client.post(PATH, json={"prompt": ["a", "a"], "max_length": 1, "do_sample": True}).json()["gen_text"]
    assert one != other


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"num_beams": 2, "do_sample": True}, "do_sample", "num_beams 2 searches"),
        ({"num_beams": 2, "penalty_alpha": 0.5, "top_k": 2}, "penalty_alpha", "num_beams 2 of beam search"),
        ({"do_sample": True, "penalty_alpha": 0.5, "top_k": 2}, "penalty_alpha", "do_sample draws"),
        ({"penalty_alpha": 0.5}, "top_k", "at least 2"),
        ({"penalty_alpha": 0.5, "top_k": 1}, "top_k", "at least 2"),
        ({"temperature": 0.7}, "temperature", "needs do_sample"),
        ({"temperature": 0.7, "num_beams": 2}, "temperature", "needs do_sample"),
        ({"temperature": 0.7, "penalty_alpha": 0.5, "top_k": 2}, "temperature", "needs do_sample"),
        ({"top_p": 0.7}, "top_p", "needs do_sample"),
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
        ({"prompt": ""}, "prompt", "blank"),
        ({"prompt": ["a", " "]}, "prompt.1", "blank"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": ["a"] * 65}, "prompt", "at most 64 items"),
        ({"prompt": [5]}, "prompt", "valid string"),
        ({"prompt": ["a"] * 6}, None, "at most 5"),
        ({"bad_words": ["a", ""]}, "bad_words.1", "at least 1 character"),
        ({"bad_words": "a"}, "bad_words", "valid list"),
        ({"do_sample": True, "temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"do_sample": True, "top_k": -1}, "top_k", "greater than or equal to 0"),
        ({"do_sample": True, "top_p": 0}, "top_p", "greater than 0"),
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
        ({"length_penalty": 1.0}, "length_penalty", "not supported"),
    ],
)
def test_bad_input_is_named(served: Any, fields: dict[str, Any], param: str | None, says: str) -> None:
    response = served.client.post(PATH, json={"prompt": "a", "max_length": 8, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]
    assert served.engine.seen == []


def test_another_model_and_half_a_surrogate_pair_are_named(served: Any) -> None:
    assert served.client.post(PATH, json={"prompt": "a", "model": "gpt-4"}).json()["error"]["code"] == "model_not_found"
    response = served.client.post(
        PATH, content=b'{"prompt": ["a", "\\ud800"], "max_length": 8}', headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt.1")


def test_a_failed_prompt_fails_the_request_and_cancels_the_others(served: Any) -> None:
    response = served.client.post(PATH, json={"prompt": ["a", "b~"], "max_length": 8})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")
    assert served.engine.cancelled == [served.engine.seen[0].id]
    assert served.router.in_flight == 0


def test_who_waits_in_the_queue_is_answered_too(served: Any) -> None:
    served.engine.queue = 3
    assert served.client.post(PATH, json={"prompt": "a", "max_length": 1, "seed": 2}).json() == {"gen_text": ["2/2/0 "]}


def test_a_client_that_leaves_frees_its_place(served: Any) -> None:
    served.worker.stalled = True

    async def leave() -> None:
        body = json.dumps({"prompt": ["a", "b"], "max_length": 8}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            while len(served.engine.seen) < 2:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": headers, "http_version": "1.1"}
        await served.client.app(scope, receive, send)

    asyncio.run(leave())
    assert sorted(served.engine.cancelled) == sorted(job.id for job in served.engine.seen)
    assert served.router.in_flight == 0


NEW = 24
TEXTS = ["Once upon a time", "There was a king who", "The fox said to the crow"]


class Real:
    """The routes over an engine with the bundled model, and the same model for transformers. Both end their answers with full stops."""

    def __init__(self, client: TestClient, model: PreTrainedModel, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self.client, self.model, self.tokenizer, self.ends = client, model, tokenizer, ends

    def answers(self, **fields: Any) -> list[str]:
        response = self.client.post(PATH, json={"max_length": NEW, **fields})
        assert response.status_code == 200, response.text
        found: list[str] = response.json()["gen_text"]
        return found

    def tokens(self, prompt: str, **how: Any) -> list[int]:
        """What `generate` adds to a prompt."""
        row = torch.tensor([self.tokenizer.encode(prompt, "prompt")])
        plain = {
            "max_new_tokens": NEW,
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "eos_token_id": sorted(self.ends),
        }
        out = self.model.generate(row, attention_mask=torch.ones_like(row), pad_token_id=0, **plain | how)
        found: list[int] = out[0, row.shape[1] :].tolist()
        return found[:-1] if found[-1] in self.ends else found

    def said(self, prompt: str, tokens: list[int]) -> str:
        ids = list(self.tokenizer.encode(prompt, "prompt"))
        return self.tokenizer.decode(ids + tokens)[len(self.tokenizer.decode(ids)) :]

    def golden(self, prompt: str, **how: Any) -> str:
        return self.said(prompt, self.tokens(prompt, **how))

    def words(self, *words: str) -> list[list[int]]:
        return [list(tokens) for word in words for tokens in self.tokenizer.sequences(word, "bad_words")]


@pytest.fixture(scope="module")
def real(bundled: Path) -> Iterator[Real]:
    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32).eval()

    slots, context = 8, 256
    tokenizer = Tokenizer(str(bundled))
    ends = tokenizer.ends() | set(tokenizer.encode(".", "prompt", special=False))
    engine = Engine(adopt(load(), Room(slots, context)), tokenizer.decode, ends, Limits(slots, context, 128))
    facts = Facts("storyteller", context, slots, "none", "float32", "cpu", None, True)
    router = Router(64, [facts.name])
    router.replicas[0].queue = FakeWorker(router, engine)  # type: ignore[arg-type]
    router.append([(psutil.Process().pid, 0, facts), "OK"])
    app = FastAPI()
    install(app, 100_000)
    app.include_router(create_routes(router, {facts.name: tokenizer}, 1))
    with TestClient(app) as client:
        yield Real(client, load(), tokenizer, ends)


def test_greedy_equals_generate(real: Real) -> None:
    assert real.answers(prompt=TEXTS) == [real.golden(text) for text in TEXTS]
    assert real.answers(prompt=TEXTS[0], seed=1) == real.answers(prompt=TEXTS[0], seed=2)


def test_a_length_is_counted_in_new_tokens(real: Real) -> None:
    long = "Once upon a time there was a king who had three sons, and " * 3
    assert real.answers(prompt=long, max_length=3) == [real.golden(long, max_new_tokens=3)]


@pytest.mark.parametrize("early", [False, True])
def test_beam_search_equals_generate(real: Real, early: bool) -> None:
    """Several at once, each with as many beams as half of the slots."""
    found = real.answers(prompt=TEXTS, num_beams=4, early_stop=early)
    assert found == [real.golden(text, num_beams=4, early_stopping=early) for text in TEXTS]
    assert found != real.answers(prompt=TEXTS)


def test_when_a_beam_search_ends_is_heard_in_its_answer(real: Real) -> None:
    how = {"end_sequence": " the", "num_beams": 6, "max_length": 40}
    early, late = (real.answers(prompt=TEXTS, early_stop=stop, **how) for stop in (True, False))
    assert early != late


HOW: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}), ({"num_beams": 4}, {"num_beams": 4})]


@pytest.mark.parametrize(("fields", "how"), HOW)
def test_the_end_sequence_ends_as_by_generate(real: Real, fields: dict[str, Any], how: dict[str, Any]) -> None:
    for word in (",", " the", "w"):
        wanted = [real.golden(text, stop_strings=[word], tokenizer=real.tokenizer.base, **how).split(word)[0] for text in TEXTS]
        assert real.answers(prompt=TEXTS, end_sequence=word, **fields) == wanted


@pytest.mark.parametrize(("fields", "how"), HOW)
def test_bad_words_and_repetitions_are_as_by_generate(real: Real, fields: dict[str, Any], how: dict[str, Any]) -> None:
    bad = real.words("the", "king", "upon a")
    plain = real.answers(prompt=TEXTS, **fields)
    for more, as_theirs in (
        ({"bad_words": ["the", "king", "upon a"]}, {"bad_words_ids": bad}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    ):
        found = real.answers(prompt=TEXTS, **more, **fields)
        assert found == [real.golden(text, **as_theirs, **how) for text in TEXTS]
        assert found != plain


EARLY: dict[str, Any] = {"num_beams": 4, "early_stop": True}


@pytest.mark.parametrize(("fields", "how"), [({}, {}), (EARLY, {"num_beams": 4, "early_stopping": True})])
def test_an_answer_that_would_end_goes_on_to_its_least_length(real: Real, fields: dict[str, Any], how: dict[str, Any]) -> None:
    how = {**how, "max_new_tokens": 60}
    text = next(text for text in TEXTS if len(real.tokens(text, **how)) < 50)
    least = len(real.tokens(text, **how)) + 5
    wanted = real.golden(text, min_new_tokens=least, **how)
    assert real.answers(prompt=text, max_length=60, min_length=least, **fields) == [wanted]
    assert real.answers(prompt=text, max_length=60, **fields) == [real.golden(text, **how)] != [wanted]


def contrastive(real: Real, prompt: str, top_k: int, alpha: float) -> str:
    """The definition (arXiv 2202.06417, eq. 5), a full forward for each candidate."""
    ids = list(real.tokenizer.encode(prompt, "prompt"))
    tokens = list(ids)
    with torch.inference_mode():
        for _ in range(NEW):
            out = real.model(torch.tensor([tokens]), output_hidden_states=True)
            top = out.logits[0, -1].softmax(-1).topk(top_k)
            tried = real.model(torch.tensor([[*tokens, int(token)] for token in top.indices]), output_hidden_states=True)
            states = tried.hidden_states[-1][:, -1]
            alike = torch.nn.functional.cosine_similarity(out.hidden_states[-1][0][None], states[:, None], dim=-1).amax(-1)
            tokens.append(int(top.indices[((1 - alpha) * top.values - alpha * alike).argmax()]))
            if tokens[-1] in real.ends:
                return real.said(prompt, tokens[len(ids) : -1])
    return real.said(prompt, tokens[len(ids) :])


def test_contrastive_search_is_its_definition(real: Real) -> None:
    found = real.answers(prompt=TEXTS, penalty_alpha=0.6, top_k=4)
    assert found == [contrastive(real, text, 4, 0.6) for text in TEXTS]
    assert found != real.answers(prompt=TEXTS, penalty_alpha=0.1, top_k=4)
    assert found != real.answers(prompt=TEXTS, penalty_alpha=0.6, top_k=2)
    assert found != real.answers(prompt=TEXTS)
    ends = real.answers(prompt=TEXTS, penalty_alpha=0.6, top_k=4, end_sequence=",")
    assert ends == [text.split(",")[0] for text in found] != found


def test_sampling_is_told_by_its_seed_alone(real: Real) -> None:
    """The same prompt with the same seed, alone and among others, is the same text; another seed or another filter is another."""
    fields = {"do_sample": True, "temperature": 1.2, "seed": 11}
    together = real.answers(prompt=[*TEXTS, TEXTS[0]], **fields)
    assert together == [real.answers(prompt=text, **fields)[0] for text in [*TEXTS, TEXTS[0]]]
    for other in ({"seed": 12}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.3}, {"do_sample": True, "bad_words": ["the"]}):
        assert real.answers(prompt=TEXTS, **{**fields, **other}) != together[:3]
    assert real.answers(prompt=TEXTS, do_sample=True, temperature=1.0, top_k=1, top_p=1) == real.answers(prompt=TEXTS)
    assert real.answers(prompt=TEXTS, do_sample=True) != real.answers(prompt=TEXTS, do_sample=True)


def test_the_examples_of_the_docs_run(api: Running) -> None:
    schema = httpx.get(f"{api.url}/openapi.json", timeout=30).json()
    assert {"200", "400", "404", "429", "503"} <= set(schema["paths"][PATH]["post"]["responses"])
    for example in schema["components"]["schemas"]["GenerateRequest"]["examples"]:
        response = httpx.post(f"{api.url}{PATH}", json=example, timeout=60)
        assert response.status_code == 200, response.text
        prompts = example["prompt"] if isinstance(example["prompt"], list) else [example["prompt"]]
        assert len(response.json()["gen_text"]) == len(prompts)
        assert httpx.post(f"{api.url}{PATH}", json=example, timeout=60).json() == response.json()


def test_a_search_whose_client_leaves_frees_all_its_slots(api: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{api.url}{PATH}", json={"prompt": "Once", "num_beams": 16, "max_length": 1000, "min_length": 1000}, timeout=0.5)

    def idle() -> bool:
        slots = httpx.get(f"{api.url}/slots", timeout=30).json()["slots"]
        return all(slot["request"] is None or not slot["request"].startswith("generate-") for slot in slots)

    wait_for(idle, 10)
