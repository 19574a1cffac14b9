"""The answers of POST /generate: the real engine against transformers' `generate`, and the examples of the documents."""

import json
import socket
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
from observing import samples_of, value_of
from serving import RunningServer, wait_for
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.facts import Facts
from app.settings import QueueSettings
from app.tokenizer import Tokenizer
from serve.middleware import install
from serve.routes import create_routes
from serve.workers.messages import Ready
from serve.workers.router import Router

PATH = "/generate"
MAX_NEW_TOKENS = 16
TEXTS = ["Once upon a time", "There was a king who", "The fox said to the crow"]


class Real:
    """The routes over an engine with the bundled model, and the same model in transformers. A full stop ends the answers of both."""

    def __init__(self, client: TestClient, model: PreTrainedModel, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self.client, self.model, self.tokenizer, self.ends = client, model, tokenizer, ends

    def answers(self, **fields: Any) -> list[str]:
        response = self.client.post(PATH, json={"max_length": MAX_NEW_TOKENS, **fields})
        assert response.status_code == 200, response.text
        answers: list[str] = response.json()["gen_text"]
        return answers

    def tokens(self, prompt: str, **options: Any) -> list[int]:
        """The tokens that transformers' `generate` adds to a prompt."""
        row = torch.tensor([self.tokenizer.encode(prompt, "prompt")])
        plain = {
            "max_new_tokens": MAX_NEW_TOKENS,
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "eos_token_id": sorted(self.ends),
        }
        out = self.model.generate(row, attention_mask=torch.ones_like(row), pad_token_id=0, **plain | options)
        new_tokens: list[int] = out[0, row.shape[1] :].tolist()
        return new_tokens[:-1] if new_tokens[-1] in self.ends else new_tokens

    def answer_text(self, prompt: str, tokens: list[int]) -> str:
        ids = list(self.tokenizer.encode(prompt, "prompt"))
        return self.tokenizer.decode(ids + tokens)[len(self.tokenizer.decode(ids)) :]

    def golden(self, prompt: str, **options: Any) -> str:
        return self.answer_text(prompt, self.tokens(prompt, **options))

    def words(self, *words: str) -> list[list[int]]:
        return [list(tokens) for word in words for tokens in self.tokenizer.word_encodings(word, "bad_words")]


@pytest.fixture(scope="module")
def real(bundled: Path) -> Iterator[Real]:
    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32).eval()

    slots, context = 8, 256
    tokenizer = Tokenizer(str(bundled))
    ends = tokenizer.end_tokens() | set(tokenizer.encode(".", "prompt", add_special_tokens=False))
    engine = Engine(create_flat_model(load(), CacheLimits(slots, context)), tokenizer.decode, ends, EngineLimits(slots, context, 128))
    facts = Facts("storyteller", context, slots, "none", "float32", "cpu", None, True)
    router = Router([facts.name], QueueSettings(max_waiting=64))
    router.replicas[0].queue = FakeWorker(router, engine)  # type: ignore[arg-type]
    router.append([Ready(psutil.Process().pid, 0, facts), "OK"])
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
    """Several prompts at once, each with half as many beams as there are slots."""
    answers = real.answers(prompt=TEXTS, num_beams=4, early_stop=early)
    assert answers == [real.golden(text, num_beams=4, early_stopping=early) for text in TEXTS]
    assert answers != real.answers(prompt=TEXTS)


def test_early_stop_changes_when_a_beam_search_ends(real: Real) -> None:
    options = {"end_sequence": " the", "num_beams": 6, "max_length": 40}
    early, late = (real.answers(prompt=TEXTS, early_stop=stop, **options) for stop in (True, False))
    assert early != late


SEARCHES: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}), ({"num_beams": 4}, {"num_beams": 4})]


@pytest.mark.parametrize(("fields", "options"), SEARCHES)
def test_the_end_sequence_ends_as_by_generate(real: Real, fields: dict[str, Any], options: dict[str, Any]) -> None:
    for word in (",", " the", "w"):
        expected = [real.golden(text, stop_strings=[word], tokenizer=real.tokenizer.base, **options).split(word)[0] for text in TEXTS]
        assert real.answers(prompt=TEXTS, end_sequence=word, **fields) == expected


@pytest.mark.parametrize(("fields", "options"), SEARCHES)
def test_bad_words_and_repetitions_are_as_by_generate(real: Real, fields: dict[str, Any], options: dict[str, Any]) -> None:
    bad = real.words("the", "king", "upon a")
    plain = real.answers(prompt=TEXTS, **fields)
    for more, their_options in (
        ({"bad_words": ["the", "king", "upon a"]}, {"bad_words_ids": bad}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    ):
        answers = real.answers(prompt=TEXTS, **more, **fields)
        assert answers == [real.golden(text, **their_options, **options) for text in TEXTS]
        assert answers != plain


EARLY: dict[str, Any] = {"num_beams": 4, "early_stop": True}


@pytest.mark.parametrize(("fields", "options"), [({}, {}), (EARLY, {"num_beams": 4, "early_stopping": True})])
def test_min_length_delays_the_end_of_an_answer(real: Real, fields: dict[str, Any], options: dict[str, Any]) -> None:
    options = {**options, "max_new_tokens": 60}
    text, tokens = next((text, tokens) for text in TEXTS if len(tokens := real.tokens(text, **options)) < 50)
    min_length = len(tokens) + 5
    expected = real.golden(text, min_new_tokens=min_length, **options)
    assert real.answers(prompt=text, max_length=60, min_length=min_length, **fields) == [expected]
    assert real.answers(prompt=text, max_length=60, **fields) == [real.answer_text(text, tokens)] != [expected]


def contrastive(real: Real, prompt: str, top_k: int, alpha: float) -> str:
    """Contrastive search by its definition (arXiv 2202.06417, eq. 5), with a full forward for each candidate."""
    ids = list(real.tokenizer.encode(prompt, "prompt"))
    tokens = list(ids)
    with torch.inference_mode():
        for _ in range(MAX_NEW_TOKENS):
            out = real.model(torch.tensor([tokens]), output_hidden_states=True)
            top = out.logits[0, -1].softmax(-1).topk(top_k)
            tried = real.model(torch.tensor([[*tokens, int(token)] for token in top.indices]), output_hidden_states=True)
            states = tried.hidden_states[-1][:, -1]
            alike = torch.nn.functional.cosine_similarity(out.hidden_states[-1][0][None], states[:, None], dim=-1).amax(-1)
            tokens.append(int(top.indices[((1 - alpha) * top.values - alpha * alike).argmax()]))
            if tokens[-1] in real.ends:
                return real.answer_text(prompt, tokens[len(ids) : -1])
    return real.answer_text(prompt, tokens[len(ids) :])


def test_contrastive_search_is_its_definition(real: Real) -> None:
    answers = real.answers(prompt=TEXTS, penalty_alpha=0.6, top_k=4)
    assert answers == [contrastive(real, text, 4, 0.6) for text in TEXTS]
    assert answers != real.answers(prompt=TEXTS, penalty_alpha=0.1, top_k=4)
    assert answers != real.answers(prompt=TEXTS, penalty_alpha=0.6, top_k=2)
    assert answers != real.answers(prompt=TEXTS)
    ends = real.answers(prompt=TEXTS, penalty_alpha=0.6, top_k=4, end_sequence=",")
    assert ends == [text.split(",")[0] for text in answers] != answers


def test_sampling_depends_on_its_seed_and_not_on_the_batch(real: Real) -> None:
    """The same prompt and seed give the same text, alone and in a batch; another seed or filter gives another text."""
    fields = {"do_sample": True, "temperature": 1.2, "seed": 11}
    together = real.answers(prompt=[*TEXTS, TEXTS[0]], **fields)
    assert together == [real.answers(prompt=text, **fields)[0] for text in [*TEXTS, TEXTS[0]]]
    for other in ({"seed": 12}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.3}, {"do_sample": True, "bad_words": ["the"]}):
        assert real.answers(prompt=TEXTS, **{**fields, **other}) != together[:3]
    assert real.answers(prompt=TEXTS, do_sample=True, temperature=1.0, top_k=1, top_p=1) == real.answers(prompt=TEXTS)
    assert real.answers(prompt=TEXTS, do_sample=True) != real.answers(prompt=TEXTS, do_sample=True)


def test_the_examples_of_the_docs_run(api: RunningServer) -> None:
    schema = httpx.get(f"{api.url}/openapi.json", timeout=30).json()
    assert {"200", "400", "404", "429", "503"} <= set(schema["paths"][PATH]["post"]["responses"])
    for example in schema["components"]["schemas"]["GenerateRequest"]["examples"]:
        response = httpx.post(f"{api.url}{PATH}", json=example, timeout=60)
        assert response.status_code == 200, response.text
        prompts = example["prompt"] if isinstance(example["prompt"], list) else [example["prompt"]]
        assert len(response.json()["gen_text"]) == len(prompts)
        assert httpx.post(f"{api.url}{PATH}", json=example, timeout=60).json() == response.json()


def test_a_search_whose_client_leaves_frees_all_its_slots(api: RunningServer) -> None:
    def searches() -> bool:
        return any((slot["request"] or "").startswith("generate-") for slot in api.slots()["slots"])

    def aborted() -> float:
        samples = samples_of(httpx.get(f"{api.url}/metrics").text)
        return value_of(samples, "request_success_total", model="storyteller", finished_reason="abort")

    before, address = aborted(), api.url.removeprefix("http://")
    body = json.dumps({"prompt": "Once", "num_beams": 16, "max_length": 1000, "min_length": 1000})
    head = f"POST {PATH} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(address.split(":")) as client:
        client.sendall((head + body).encode())
        wait_for(searches)
    wait_for(lambda: not searches())
    assert aborted() == before + 1
