import re
from typing import Any

import pytest

from app.schemas import ModelCard, Readiness
from tests.ui.conftest import BASE, CARD, MUTE
from ui import header
from ui.models import Choice


def shown(*cards: dict[str, Any], asked: str = "", status: str = "ready", **presence: str) -> str:
    return header.header(choice(*cards, asked=asked, status=status, **presence))


def choice(*cards: dict[str, Any], asked: str = "", status: str = "ready", **presence: str) -> Choice:
    readiness = Readiness.model_validate({"status": status, "models": presence})
    return Choice([ModelCard.model_validate(card) for card in cards], readiness, asked)


def lines(shown: str) -> list[str]:
    return [re.sub(r"<.*?>", "", line) for line in re.findall(r"<li.*?</li>", shown)]


def test_the_header_names_what_is_served():
    text = shown({**CARD, "id": "story<teller>", "device": "cuda:0"})
    for words in ("story&lt;teller&gt;", "nf4, computing in bfloat16", "cuda:0", "4,096 tokens", ">32<", "storyteller-base"):
        assert words in text
    assert "no chat template" not in text
    assert "problem" not in text
    assert lines(text) == []


def test_the_header_of_a_plain_model_without_a_template():
    text = shown({**MUTE, "quantize": "none"})
    assert "<dd>bfloat16</dd>" in text
    assert "no chat template" in text


def test_several_models_take_a_line_each_and_the_chosen_one_is_marked():
    text = shown(CARD, {**MUTE, "id": "<mute>"}, asked="<mute>")
    assert lines(text) == [
        "storyteller default nf4, computing in bfloat16 · cpu · 4,096 tokens · 32 slots · observer storyteller-base",
        "&lt;mute&gt; chosen nf4, computing in bfloat16 · cpu · 4,096 tokens · 32 slots · no chat template",
    ]
    assert re.findall(r"<li aria-current=true><b>(.*?)</b>", text) == ["&lt;mute&gt;"]


def test_the_default_is_chosen_wherever_it_stands():
    assert [line.startswith("storyteller chosen default ") for line in lines(shown(BASE, CARD))] == [False, True]


@pytest.mark.parametrize("status", ["loading", "draining"])
def test_the_header_says_when_the_server_is_not_ready(status: str):
    assert f"The server is {status}: answers may be refused." in shown(CARD, status=status, storyteller="loading")


def test_the_header_names_the_models_that_are_loading():
    told = "The server is still loading base, big. Reload this page to look again."
    assert told in shown(CARD, status="loading", storyteller="ready", base="loading", big="loading")


def test_a_model_that_is_not_there_is_told_by_a_sentence():
    soon = shown(CARD, asked="base", status="loading", storyteller="ready", base="loading")
    assert "base is not there yet, so storyteller is chosen." in soon
    assert "b&lt;se is no longer served here, so storyteller is chosen." in shown(CARD, BASE, asked="b<se")


def test_a_model_without_a_template_says_which_one_chats():
    assert header.speechless(choice(CARD, MUTE)) == ""
    alone = header.speechless(choice(MUTE))
    assert "mute has no chat template, so it cannot chat. The Score tab works." in alone
    assert "Choose storyteller or base to chat." in header.speechless(choice(CARD, BASE, MUTE, asked="mute"))
    assert "Score" not in header.speechless(choice({**MUTE, "capabilities": ["completions"]}))
    assert header.speechless(choice()) == ""


def test_an_unreachable_server_is_a_sentence():
    assert "No server at &lt;x&gt;." in header.unreachable("No server at <x>.")
