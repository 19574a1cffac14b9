"""What each precision says of itself, and text to tokens and back."""

import math

import pytest
from inprocess import LocalModel, LocalServer

TEXTS = ["Once upon a time", "  two  blanks\n\tand a tab ", "naïve ☕ 猫 😀 𝄞 e\u0301 \u202e", "</s> and <s> are named", "\x00\x7f"]


def test_the_card_says_what_is_served(model: LocalModel) -> None:
    card = model.http.get(f"/v1/models/{model.name}").json()
    quantize = {"int8": "int8", "int4": "int4", "nf4": "nf4"}.get(model.name, "none")
    dtype = "float32" if model.name == "float32" else "bfloat16"
    assert (card["id"], card["quantize"], card["dtype"], card["device"]) == (model.name, quantize, dtype, "cpu")
    assert (card["context"], card["slots"], card["chat"]) == (model.settings.context, model.settings.slots, True)
    assert card["observer"] == ("observer" if model.name != "gguf" else card["observer"])
    assert card["methods"] == ["binoculars", "likelihood_ratio", "fast_detect", "perplexity", "log_rank"]
    capabilities = "chat completions score embeddings tools structured_output beam_search contrastive_search"
    assert set(card["capabilities"]) == set(capabilities.split())
    assert card["revision"] and all(math.isfinite(value) for value in card["default_sampling_params"].values())


def test_fingerprints_tell_the_precisions_apart(server: LocalServer, model: LocalModel) -> None:
    answer = model.complete("a", max_tokens=1)
    assert answer["finish_reason"] == "length"
    fingerprint = model.post("/v1/completions", prompt="a", max_tokens=1)["system_fingerprint"]
    assert fingerprint == model.facts.fingerprint
    others = [server.model(name).facts.fingerprint for name in server.settings if name != model.name]
    assert fingerprint not in others


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_back(model: LocalModel, text: str) -> None:
    answer = model.post("/tokenize", prompt=text, return_token_strs=True)
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["tokens"] == model.encode(text) and answer["max_model_len"] == model.facts.context
    assert model.post("/detokenize", tokens=answer["tokens"])["prompt"] == text


def test_all_precisions_tokenize_alike(server: LocalServer, model: LocalModel) -> None:
    messages = [{"role": "system", "content": "You tell tales."}, {"role": "user", "content": TEXTS[2]}]
    first = server.model("float32")
    for body in ({"messages": messages}, {"messages": messages, "add_generation_prompt": False}, *({"prompt": text} for text in TEXTS)):
        assert model.post("/tokenize", **body)["tokens"] == first.post("/tokenize", **body)["tokens"]
    text = model.post("/detokenize", tokens=model.post("/tokenize", messages=messages)["tokens"])["prompt"]
    assert text == f"system: You tell tales.</s>\nuser: {TEXTS[2]}</s>\nassistant: "


def test_the_slots_show_what_is_resident(model: LocalModel) -> None:
    prompt = f"{model.name} was here"
    length = len(model.encode(prompt))
    model.complete(prompt, max_tokens=5, ignore_eos=True)
    state = model.slots()
    decision = state["decisions"][-1]
    slot = state["slots"][decision["slot"]]
    assert (decision["prompt_tokens"], slot["stage"], slot["request"], slot["cached_tokens"]) == (length, "idle", None, length + 4)
    assert (len(state["slots"]), state["texts"], state["waiting"]) == (model.facts.slots, 0, [])
