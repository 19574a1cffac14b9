"""The parts of the chat tab that a step changes, and the change of a step. Knows how Gradio wants its updates, and nothing of a chat."""

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

SKIP: Any = ...  # leaves a part as it is


@dataclass(frozen=True, slots=True)
class Desk:
    """The components. The browser holds all of it: the open conversation in `kept`, the answer on its way in `draft`, and in `running`
    what is being done.
    """

    chatbot: gr.Chatbot
    line: gr.HTML
    kept: gr.Textbox
    draft: gr.JSON
    running: gr.Textbox
    editing: gr.Textbox  # index of the question that is being edited, and the draft that stood in the box before; blank for none
    banner: gr.HTML
    box: gr.Textbox
    send: gr.Button
    stop: gr.Button
    score_text: gr.Textbox  # on the score tab

    @property
    def outputs(self) -> list[Any]:
        return [getattr(self, part.name) for part in fields(self)]


@dataclass(frozen=True, slots=True)
class Change:
    """What a step does to each part of the desk, under the same names."""

    chatbot: Any = SKIP
    line: Any = SKIP
    kept: Any = SKIP
    draft: Any = SKIP
    running: Any = SKIP
    editing: Any = SKIP
    banner: Any = SKIP
    box: Any = SKIP
    send: Any = SKIP
    stop: Any = SKIP
    score_text: Any = SKIP

    @property
    def updates(self) -> tuple[Any, ...]:
        values = [getattr(self, part.name) for part in fields(self)]
        return tuple(gr.skip() if value is SKIP else value for value in values)
