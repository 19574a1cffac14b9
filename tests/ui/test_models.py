import pytest

from app.schemas import ModelCard, Readiness
from tests.ui.conftest import BASE, CARD, MUTE
from ui.models import Choice


def chosen(*cards: dict, asked: str = "", **presence: str) -> Choice:
    readiness = Readiness(status="ready", models=presence)
    return Choice([ModelCard.model_validate(card) for card in cards], readiness, asked)


@pytest.mark.parametrize(
    ("choice", "name", "sent"),
    [
        (chosen(), None, None),
        (chosen(CARD), "storyteller", None),
        (chosen(BASE), "base", "base"),
        (chosen(CARD, BASE), "storyteller", "storyteller"),
        (chosen(BASE, CARD), "storyteller", "storyteller"),
        (chosen(CARD, BASE, asked="base"), "base", "base"),
        (chosen(BASE, CARD, asked="gone"), "storyteller", "storyteller"),
        (chosen(CARD, asked="base"), "storyteller", None),
    ],
)
def test_the_model_asked_for_else_the_default_else_any(choice: Choice, name: str | None, sent: str | None):
    assert (choice.card and choice.card.id, choice.sent) == (name, sent)


@pytest.mark.parametrize(
    ("choice", "missed", "coming", "kept"),
    [
        (chosen(CARD, BASE), False, False, ""),
        (chosen(CARD, BASE, asked="base"), False, False, "base"),
        (chosen(CARD, asked="base", storyteller="ready", base="loading"), True, True, "base"),
        (chosen(CARD, asked="base", storyteller="ready"), True, False, "storyteller"),
        (chosen(asked="base"), True, False, "base"),
    ],
)
def test_a_model_that_is_not_there_is_missed_and_kept_in_mind_if_it_will_come(choice: Choice, missed: bool, coming: bool, kept: str):
    assert (choice.missed, choice.coming, choice.kept) == (missed, coming, kept)


def test_what_is_loading_is_named_only_among_several():
    assert chosen(CARD, storyteller="ready", base="loading").loading == ["base"]
    assert chosen(CARD, storyteller="loading").loading == []


def test_who_talks():
    assert chosen(CARD, MUTE, BASE).talkers == ["storyteller", "base"]
