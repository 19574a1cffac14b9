"""LoRA adapters beside their base in every precision: as names of models of their own, several in a step, loaded and unloaded meanwhile."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from inprocess import LocalModel, LocalServer
from reference import Reference, load_reference
from safetensors.torch import load_file
from torch import nn

from app.settings import ModelSettings

GREEDY = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
PROMPTS = ["Once upon a time", "The fox said to the crow", "It was the best of"]
STORY = "The old king sat by the fire and looked at the snow. He had three sons, and none of them would stay at home."


@cache
def adapted_reference(settings: ModelSettings, path: str, tolerance: float) -> Reference:
    """transformers' forward of the base's rounded weights, with the adapter's B A x beside each layer."""
    model = load_reference.__wrapped__(settings, settings.path, tolerance).model
    weights = load_file(Path(path) / "adapter_model.safetensors")
    for key in [key for key in weights if key.endswith("lora_A.weight")]:
        down, up = weights[key], weights[key.replace("lora_A", "lora_B")] * (2 / 4)  # lora_alpha / r
        layer = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        layer.register_forward_hook(_adding(down, up))
    return Reference(model, tolerance)


def _adding(down: torch.Tensor, up: torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    return lambda _, args, output: output + args[0] @ down.T @ up.T


@pytest.fixture
def adapter(model: LocalModel) -> LocalModel:
    return model.adapted(f"{model.name}-tuned")


@pytest.fixture
def expected(model: LocalModel, adapter: LocalModel, reference: Reference) -> Reference:
    return adapted_reference(model.settings, model.settings.adapters[adapter.name], reference.tolerance)


def test_an_adapters_answers_and_probabilities_are_those_of_base_and_adapter(
    model: LocalModel, adapter: LocalModel, reference: Reference, expected: Reference
) -> None:
    prompt = model.encode(STORY)
    expected.check_greedy(prompt, adapter.answer_ids(prompt, **GREEDY))
    echoed, plain = (
        each.complete(prompt, echo=True, logprobs=0, max_tokens=0)["logprobs"]["token_logprobs"][1:] for each in (adapter, model)
    )
    assert echoed == pytest.approx(expected.logprobs(prompt), abs=expected.tolerance)
    assert plain == pytest.approx(reference.logprobs(prompt), abs=reference.tolerance)
    assert max(abs(one - other) for one, other in zip(echoed, plain, strict=True)) > 2 * expected.tolerance


def test_rows_of_all_adapters_run_together_as_they_run_alone(steady: LocalModel) -> None:
    """Answers, and a text of the adapter that the base observes, beside each other."""
    models = [steady, steady.adapted(f"{steady.name}-tuned"), steady.adapted(f"{steady.name}-other")]
    asked = [(each, prompt) for each in models for prompt in PROMPTS]
    alone = [each.answer_ids(prompt, **GREEDY) for each, prompt in asked]
    score = models[1].post("/v1/score", text=STORY, methods=["binoculars"])["data"][0]["scores"]
    with ThreadPoolExecutor(len(asked) + 1) as pool:
        answers = [pool.submit(each.answer_ids, prompt, **GREEDY) for each, prompt in asked]
        scored = pool.submit(models[1].post, "/v1/score", text=STORY, methods=["binoculars"])
        assert [answer.result(60) for answer in answers] == alone
    assert scored.result(60)["data"][0]["scores"] == pytest.approx(score, rel=1e-4)


def test_the_base_observes_its_adapter(model: LocalModel, adapter: LocalModel, reference: Reference, expected: Reference) -> None:
    answer = adapter.post("/v1/score", text=STORY, methods=["binoculars", "likelihood_ratio"])
    assert (answer["model"], answer["observer"]) == (adapter.name, model.name)
    ids = model.encode(STORY)
    log_p, log_q = (each.logits(ids)[:-1].log_softmax(-1) for each in (expected, reference))
    surprise, crossed = -sum(expected.logprobs(ids)) / (len(ids) - 1), -float((log_q.exp() * log_p).sum(-1).mean())
    scores = answer["data"][0]["scores"]
    assert scores["binoculars"] == pytest.approx(surprise / crossed, rel=expected.tolerance / 5)
    assert scores["likelihood_ratio"] == pytest.approx(
        -surprise - sum(reference.logprobs(ids)) / (len(ids) - 1), abs=expected.tolerance / 2
    )


def test_a_prefix_is_never_shared_between_adapters(model: LocalModel, adapter: LocalModel, expected: Reference) -> None:
    """The base reads the prompt first, and its slot is idle."""
    prompt = model.encode(f"{adapter.name} {STORY}")
    model.complete(prompt, max_tokens=1)
    adapter.complete(prompt, max_tokens=1)
    assert model.slots()["decisions"][-1]["reused_tokens"] == 0
    expected.check_greedy(prompt, adapter.answer_ids(prompt, **GREEDY))
    assert model.slots()["decisions"][-1]["reused_tokens"] == len(prompt) - 1


def test_an_adapter_comes_and_goes_while_others_answer(model: LocalModel, server: LocalServer) -> None:
    path, name = model.settings.adapters[f"{model.name}-tuned"], f"ft:{model.name}:late"
    late, known = model.adapted(name), model.adapted(f"{model.name}-tuned")
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(each.answer_ids, PROMPTS[0], **{**GREEDY, "max_tokens": 100}) for each in (model, known)]
        loaded = server.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, "model": model.name})
        assert (loaded.status_code, loaded.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
        answer = late.answer_ids(PROMPTS[0], **GREEDY)
        base, tuned = (job.result(60) for job in running)
    assert len(base) == len(tuned) == 100
    if model.name == "float32" or model.engine.performer.is_on_kernel:
        assert answer == tuned[:16]
    card = server.http.get(f"/v1/models/{name}").json()
    assert (card["id"], card["parent"], card["observer"]) == (name, model.name, model.name)
    assert server.http.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 200
    gone = server.http.post("/v1/completions", json={"model": name, "prompt": "a"})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


def test_numbers_of_a_row_do_not_depend_on_the_adapters_of_others(steady: LocalModel) -> None:
    """Bit for bit: those of the base as if there were no adapters, and those of an adapter as if all rows had it."""
    performer, ids = steady.engine.performer, steady.encode(STORY)[:24]
    one, other = f"{steady.name}-tuned", f"{steady.name}-other"
    half = len(ids) // 2
    plain, adapted = performer.forward_uncached(ids), performer.forward_uncached(ids, {one: range(len(ids))})
    mixed = performer.forward_uncached(ids, {one: range(half, len(ids))})
    assert torch.equal(mixed[:half], plain[:half]) and not torch.equal(mixed[half:], plain[half:])
    mixed = performer.forward_uncached(ids, {one: range(half), other: range(half, len(ids))})
    tolerance = 1e-4 if steady.name == "float32" else 0.0  # a product of fewer rows is summed in another order there
    torch.testing.assert_close(mixed[:half], adapted[:half], atol=tolerance, rtol=tolerance)
