import re
from typing import Any

import pytest

from app.schemas import ModelCard, Readiness
from tests.ui.fakelitmus import BASE, CARD, NO_CHAT
from ui import header
from ui.models import ModelSelection


def header_html(*cards: dict[str, Any], requested: str = "", status: str = "ready", **presence: str) -> str:
    return header.models_header(selection(*cards, requested=requested, status=status, **presence))


def selection(*cards: dict[str, Any], requested: str = "", status: str = "ready", **presence: str) -> ModelSelection:
    readiness = Readiness.model_validate({"status": status, "models": presence})
    return ModelSelection([ModelCard.model_validate(card) for card in cards], readiness, requested)


def lines(html: str) -> list[str]:
    return [re.sub(r"<.*?>", "", line) for line in re.findall(r"<li.*?</li>", html)]


def test_the_header_names_what_is_served():
    html = header_html({**CARD, "id": "story<teller>", "device": "cuda:0"})
    for words in ("story&lt;teller&gt;", "nf4, computing in bfloat16", "cuda:0", "4,096 tokens", ">32<", "storyteller-base"):
        assert words in html
    assert "no chat template" not in html
    assert "problem" not in html
    assert lines(html) == []


def test_the_header_of_a_plain_model_without_a_template():
    html = header_html({**NO_CHAT, "quantize": "none"})
    assert "<dd>bfloat16</dd>" in html
    assert "no chat template" in html


def test_the_header_says_how_a_quantized_checkpoint_has_its_weights():
    weights = {**CARD["weights"], "format": "gguf", "types": ["Q4_1", "Q8_0"]}
    assert "<dd>gguf Q4_1, Q8_0, computing in bfloat16</dd>" in header_html({**CARD, "quantize": "none", "weights": weights})


def test_a_model_of_another_server_says_who_answers():
    upstream = {
        "url": "http://10.0.0.7:8000",
        "kind": "vllm",
        "model": "m",
        "alive": True,
        "problem": None,
        "in_flight": 0,
        "concurrency": 64,
        "routes": [],
    }
    unknown = dict.fromkeys(
        ("context", "max_model_len", "revision", "quantize", "dtype", "device", "observer", "weights", "default_sampling_params")
    )
    far = {**CARD, **unknown, "id": "far", "owned_by": "vllm", "slots": 64, "upstreams": [upstream]}
    assert lines(header_html(far, CARD))[0].endswith("by vllm at http://10.0.0.7:8000 · 64 requests at once")
    assert "<dt>Answered</dt><dd>by vllm at http://10.0.0.7:8000</dd>" in header_html(far) and "<dd>unknown</dd>" in header_html(far)


def test_several_models_take_a_line_each_and_the_selected_one_is_marked():
    html = header_html(CARD, {**NO_CHAT, "id": "<mute>"}, requested="<mute>")
    assert lines(html) == [
        "storyteller default nf4, computing in bfloat16 · cpu · 4,096 tokens · 32 slots · observer storyteller-base",
        "&lt;mute&gt; selected nf4, computing in bfloat16 · cpu · 4,096 tokens · 32 slots · no chat template",
    ]
    assert re.findall(r"<li aria-current=true><b>(.*?)</b>", html) == ["&lt;mute&gt;"]


def test_the_bar_has_the_selected_model_in_a_few_words_and_the_rest_behind_them():
    html = header_html(CARD, BASE, requested="base")
    assert "<summary>base · nf4 · 4,096 tokens</summary>" in html and 'data-model="base"' in html
    weights = {**CARD["weights"], "format": "gguf", "types": ["Q4_1", "Q8_0"]}
    assert header.served(selection({**CARD, "quantize": "none", "weights": weights})) == ["storyteller", "Q4_1, Q8_0", 4096]
    assert header.served(selection()) == []


def test_the_default_is_selected_at_any_position():
    assert [line.startswith("storyteller selected default ") for line in lines(header_html(BASE, CARD))] == [False, True]


@pytest.mark.parametrize("status", ["loading", "draining"])
def test_the_header_says_when_the_server_is_not_ready(status: str):
    assert f"The server is {status}: it may refuse requests." in header_html(CARD, status=status, storyteller="loading")


def test_the_header_names_the_models_that_are_loading():
    sentence = "The server is still loading base, big. This page will show them when they are ready."
    assert sentence in header_html(CARD, status="loading", storyteller="ready", base="loading", big="loading")


def test_the_header_of_a_server_that_has_loaded_nothing_yet():
    readiness = Readiness(status="loading", models={"<big>": "loading"})
    assert "The server is loading &lt;big&gt;. This page goes on when it is ready." in header.loading_header(readiness)


def test_the_header_says_why_the_requested_model_is_not_selected():
    loading = header_html(CARD, requested="base", status="loading", storyteller="ready", base="loading")
    assert "base is not available yet, so storyteller is selected." in loading
    assert "b&lt;se is no longer served here, so storyteller is selected." in header_html(CARD, BASE, requested="b<se")


def test_the_notice_for_a_model_without_a_chat_template_names_models_that_chat():
    assert header.no_chat_notice(selection(CARD, NO_CHAT)) == ""
    notice = header.no_chat_notice(selection(NO_CHAT))
    assert "mute has no chat template, so it cannot chat. The Score tab works." in notice
    assert "Choose storyteller or base to chat." in header.no_chat_notice(selection(CARD, BASE, NO_CHAT, requested="mute"))
    assert "Score" not in header.no_chat_notice(selection({**NO_CHAT, "capabilities": ["completions"]}))
    assert header.no_chat_notice(selection()) == ""


def test_the_error_of_an_unreachable_server_is_shown_escaped():
    assert "No server at &lt;x&gt;." in header.unreachable_header("No server at <x>.")
