import gradio as gr
import pytest

from ui.chat import settings
from ui.chat.sampling import Form

MINE = ["mine", "100", "0.5", "", "", "", "7", "", "Be brief."]


@pytest.mark.parametrize("preset", settings.BUILT_IN)
def test_each_built_in_preset_fills_the_form_with_what_the_wire_takes(preset: list[str]):
    fields = settings.apply(preset[0], [])
    assert fields == preset[1:]
    assert Form(*fields).request_fields().keys() <= {"temperature", "top_p", "top_k", "min_p"}


def test_a_preset_is_saved_replaced_applied_and_deleted():
    kept, chosen, name, said = settings.saved(" mine ", [], *MINE[1:])
    assert "“mine” was saved." in said
    assert (kept, chosen["value"], name) == ([MINE], "mine", "") and ("mine", "mine") in [(n, n) for n in chosen["choices"]]
    again, *_ = settings.saved("mine", kept, *[""] * 8)
    assert again == [["mine", *[""] * 8]]
    assert settings.apply("mine", kept) == MINE[1:]
    left, chosen, said = settings.without("mine", kept)
    assert (left, chosen["value"]) == ([], settings.DEFAULT) and "“mine” was deleted. The fields are blank again." in said


@pytest.mark.parametrize(
    ("name", "sentence"),
    [(" ", "Give the preset a name first."), (settings.DEFAULT, "comes with the page"), ("x" * 61, "61 letters"), ("<" * 61, "at most 60")],
)
def test_a_preset_needs_a_name_of_its_own(name: str, sentence: str):
    *unchanged, said = settings.saved(name, [], *[""] * 8)
    assert unchanged == [gr.skip()] * 3 and sentence in said and 'role="status"' in said and "<<" not in said


def test_a_preset_of_the_page_is_not_deleted():
    *unchanged, said = settings.without(settings.DEFAULT, [MINE])
    assert unchanged == [gr.skip()] * 2 and "comes with the page and stays" in said


def test_the_oldest_preset_makes_room_and_the_page_says_so():
    presets = [[f"number {index}", *[""] * 8] for index in range(settings.PRESETS_KEPT)]
    kept, _, _, said = settings.saved("mine", presets, *MINE[1:])
    assert len(kept) == settings.PRESETS_KEPT and kept[-1] == MINE and "oldest" in said
    assert "oldest" not in settings.saved("number 7", presets, *[""] * 8)[3]


@pytest.mark.parametrize("kept", [[], None, ["1"], {"a": 1}])
def test_what_the_browser_kept_wrongly_is_the_default(kept: object):
    assert list(settings.restored(kept, [["short"], MINE, "x"]))[:-1] == [""] * 8  # type: ignore[arg-type]
    assert settings.sound([["short"], MINE, "x"]) == [MINE]
    assert settings.apply("unknown", [MINE]) == [gr.skip()] * 8
