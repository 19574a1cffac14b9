import pytest

from app.schemas import ModelCard, Readiness
from tests.ui.fakelitmus import BASE, CARD, NO_CHAT
from ui.models import ModelSelection


def select(*cards: dict, requested: str = "", **presence: str) -> ModelSelection:
    readiness = Readiness(status="ready", models=presence)
    return ModelSelection([ModelCard.model_validate(card) for card in cards], readiness, requested)


@pytest.mark.parametrize(
    ("selection", "name", "request_model"),
    [
        (select(), None, None),
        (select(CARD), "storyteller", None),
        (select(BASE), "base", "base"),
        (select(CARD, BASE), "storyteller", "storyteller"),
        (select(BASE, CARD), "storyteller", "storyteller"),
        (select(CARD, BASE, requested="base"), "base", "base"),
        (select(BASE, CARD, requested="gone"), "storyteller", "storyteller"),
        (select(CARD, requested="base"), "storyteller", None),
    ],
)
def test_the_requested_model_is_selected_else_the_default_else_the_first(
    selection: ModelSelection, name: str | None, request_model: str | None
):
    assert (selection.selected and selection.selected.id, selection.request_model) == (name, request_model)


@pytest.mark.parametrize(
    ("selection", "is_unavailable", "will_be_available", "remembered"),
    [
        (select(CARD, BASE), False, False, ""),
        (select(CARD, BASE, requested="base"), False, False, "base"),
        (select(CARD, requested="base", storyteller="ready", base="loading"), True, True, "base"),
        (select(CARD, requested="base", storyteller="ready"), True, False, "storyteller"),
        (select(requested="base"), True, False, "base"),
    ],
)
def test_an_unavailable_model_is_remembered_while_it_is_loading(
    selection: ModelSelection, is_unavailable: bool, will_be_available: bool, remembered: str
):
    assert (selection.is_unavailable, selection.will_be_available, selection.remembered) == (is_unavailable, will_be_available, remembered)


def test_loading_models_are_named_only_among_several():
    assert select(CARD, storyteller="ready", base="loading").loading_names == ["base"]
    assert select(CARD, storyteller="loading").loading_names == []


def test_models_with_a_chat_template_are_named():
    assert select(CARD, NO_CHAT, BASE).chat_names == ["storyteller", "base"]
