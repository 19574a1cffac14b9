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
    kept, chosen, name = settings.saved(" mine ", [], *MINE[1:])
    assert (kept, chosen["value"], name) == ([MINE], "mine", "") and ("mine", "mine") in [(n, n) for n in chosen["choices"]]
    again, *_ = settings.saved("mine", kept, *[""] * 8)
    assert again == [["mine", *[""] * 8]]
    assert settings.apply("mine", kept) == MINE[1:]
    assert settings.without("mine", kept)[0] == []


@pytest.mark.parametrize("name", [" ", settings.DEFAULT])
def test_a_preset_needs_a_name_of_its_own(name: str):
    with pytest.raises(gr.Error, match="a name of its own"):
        settings.saved(name, [], *[""] * 8)


@pytest.mark.parametrize("kept", [[], None, ["1"], {"a": 1}])
def test_what_the_browser_kept_wrongly_is_the_default(kept: object):
    assert list(settings.restored(kept, [["short"], MINE, "x"]))[:-1] == [""] * 8  # type: ignore[arg-type]
    assert settings.sound([["short"], MINE, "x"]) == [MINE]
    assert settings.apply("unknown", [MINE]) == [""] * 8
