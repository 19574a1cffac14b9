"""The settings of the chat: system prompt, sampling, and presets of both, all kept in the browser.

A preset is a list: its name, and the fields of `Form` in their order. Lists of texts are all that the page's calls may carry.
"""

import json
from typing import Any

import gradio as gr

from ui.markup import escape_html

DEFAULT = "Model's defaults"
BUILT_IN = [  # fields: max_tokens, temperature, top_p, top_k, min_p, seed, stop, system
    [DEFAULT, "", "", "", "", "", "", "", ""],
    ["Exact: always the likeliest token", "", "0", "", "", "", "", "", ""],
    ["Lively: more surprising words", "", "1", "0.95", "0", "0.05", "", "", ""],
]
FIELDS = len(BUILT_IN[0]) - 1
PRESETS_KEPT = 50
PRESETS_KEY = "litmus-presets"  # in localStorage
STORED_BEFORE = f"(...all) => (litmus.presetsBefore = localStorage.getItem('{PRESETS_KEY}'), all)"
SAVED = "was saved."
FULL = (
    "This browser's storage is full, so the preset is lost when you leave. Export conversations that you need, delete some, and save it "
    "again."
)
NAME_LENGTH = 60  # letters
Fields = list[str]
Preset = list[str]


def settings_form(page: gr.Blocks) -> list[gr.Textbox]:
    """Builds the form in the right sidebar. Returns the fields in the order of `Form`."""
    gr.HTML('<h2>Settings</h2><p class="hint">A blank field means the model\'s default. Everything here stays in this browser.</p>')
    chosen = gr.Dropdown(_names([]), value=DEFAULT, label="Preset", interactive=True, filterable=False, elem_id="preset")
    system = _textbox("System prompt", "none", lines=3)
    temperature = _textbox("Temperature (0 to 2)", "model's default")
    top_p = _textbox("Top-p (0 to 1)", "model's default")
    top_k = _textbox("Top-k (0 keeps all tokens)", "model's default")
    min_p = _textbox("Min-p (0 to 1)", "model's default")
    seed = _textbox("Seed", "a new one for each answer")
    max_tokens = _textbox("Max tokens", "as many as fit the context")
    stop = _textbox("Stop strings, one per line", r"none; write \n for a line break", lines=2)
    fields = [max_tokens, temperature, top_p, top_k, min_p, seed, stop, system]
    _presets(page, chosen, fields)
    return fields


def _presets(page: gr.Blocks, chosen: gr.Dropdown, fields: list[gr.Textbox]) -> None:
    """Keeps the fields and the presets in the browser."""
    name = _textbox("Name of a preset", "to keep these settings under")
    with gr.Row():
        save = gr.Button("Save preset", size="sm", min_width=90)
        delete = gr.Button("Delete preset", size="sm", min_width=90)
    said = gr.HTML("", padding=False, elem_id="preset-said")
    kept = gr.BrowserState([], storage_key="litmus-settings", secret="litmus")
    presets = gr.BrowserState([], storage_key=PRESETS_KEY, secret="litmus")
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    gr.on([field.change for field in fields], None, fields, kept, js="(...fields) => [fields]", **hidden)
    # Not `input`: Gradio raises it for every list that loses the focus, and what was typed since the choice would be lost.
    gr.on([chosen.change, chosen.select], apply, [chosen, presets], fields, **hidden)
    saving = save.click(saved, [name, presets, *fields], [presets, chosen, name, said], js=STORED_BEFORE, **hidden)
    saving.then(None, said, said, js=_said_if_stored(), **hidden)
    delete.click(without, [chosen, presets], [presets, chosen, said], **hidden)
    page.load(restored, [kept, presets], [*fields, chosen], **hidden)


def apply(chosen: str, presets: list[Preset]) -> Fields:
    """The fields of the chosen preset. They stay if there is no such preset: it was deleted in another tab."""
    return next((preset[1:] for preset in [*BUILT_IN, *sound(presets)] if preset[0] == chosen), [gr.skip()] * FIELDS)


def saved(name: str, presets: list[Preset], *fields: str) -> tuple[Any, ...]:
    """Adds a preset, or replaces the one of that name. The names that the page brings are taken."""
    name = name.strip()
    if not name:
        return _not_saved("Give the preset a name first.")
    if name in _names([]):
        return _not_saved(f"“{name}” comes with the page. Give the preset another name.")
    if len(name) > NAME_LENGTH:
        return _not_saved(f"The name has {len(name)} letters. Give the preset one of at most {NAME_LENGTH}.")
    others = [preset for preset in sound(presets) if preset[0] != name]
    kept = [*others[-PRESETS_KEPT + 1 :], [name, *fields]]
    forgotten = f" The oldest of more than {PRESETS_KEPT} was deleted." if len(others) >= PRESETS_KEPT else ""
    return kept, gr.update(choices=_names(kept), value=name), "", _status_html(f"“{name}” {SAVED}{forgotten}")


def _said_if_stored() -> str:
    """Gradio writes what is saved with another salt each time, and tells nobody that there was no room."""
    return f"""async (said) => {{
        await new Promise((done) => setTimeout(done)); // until it is written
        const isStored = localStorage.getItem('{PRESETS_KEY}') !== litmus.presetsBefore;
        return isStored || !said.includes("{SAVED}") ? said : {json.dumps(_status_html(FULL))};
    }}"""


def _not_saved(sentence: str) -> tuple[Any, ...]:
    return gr.skip(), gr.skip(), gr.skip(), _status_html(sentence)


def _status_html(sentence: str) -> str:
    return f'<p class="status" role="status">{escape_html(sentence)}</p>'


def without(chosen: str, presets: list[Preset]) -> tuple[Any, ...]:
    if chosen in _names([]):
        return gr.skip(), gr.skip(), _status_html(f"“{chosen}” comes with the page and stays. Choose one of yours to delete it.")
    kept = [preset for preset in sound(presets) if preset[0] != chosen]
    return kept, gr.update(choices=_names(kept), value=DEFAULT), _status_html(f"“{chosen}” was deleted. The fields are blank again.")


def restored(kept: Fields, presets: list[Preset]) -> tuple[Any, ...]:
    """What the form shows when the page is opened again."""
    fields = kept if isinstance(kept, list) and len(kept) == FIELDS else BUILT_IN[0][1:]
    return *(str(field or "") for field in fields), gr.update(choices=_names(sound(presets)))


def sound(presets: object) -> list[Preset]:
    """The presets among what the browser has kept."""
    rows = presets if isinstance(presets, list) else []
    return [row for row in rows if isinstance(row, list) and len(row) == FIELDS + 1 and all(isinstance(item, str) for item in row)]


def _names(presets: list[Preset]) -> list[str]:
    return [preset[0] for preset in [*BUILT_IN, *presets]]


def _textbox(label: str, placeholder: str, lines: int = 1) -> gr.Textbox:
    """The value must not be None: a field that is not shown would then send None instead of a blank."""
    return gr.Textbox(value="", label=label, placeholder=placeholder, lines=lines, max_lines=max(lines, 1) * 2, min_width=140)
