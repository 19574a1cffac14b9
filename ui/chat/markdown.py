"""Makes Markdown of a model's answer harmless, and a visitor's text literal, for Gradio's Chatbot. Pure.

An answer may be hostile: HTML is shown as text, and an image becomes a link, because a browser calls the address of an image by itself.
Code stays as it is, because the Chatbot escapes it. What gets past this is still sanitised by Gradio, and the Content-Security-Policy
stops the call.
"""

import re
from collections.abc import Iterator

LATEX: list[dict[str, str | bool]] = [  # what the Chatbot typesets; `$...$` becomes `\(...\)` here, as a lone dollar is mostly a price
    {"left": "$$", "right": "$$", "display": True},
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
]
FENCE = re.compile(r"(?:[ \t]|>|[-*+][ \t]|\d{1,9}[.)][ \t])*(`{3,}(?=[^`]*$)|~{3,})")  # also in a list or a quotation
CODE = re.compile(r"(?<!`)(`+)(?!`)(.*?[^`])\1(?!`)", re.DOTALL)
PARAGRAPH_END = re.compile(r"(\n[ \t]*\n)")
DOLLARS = re.compile(r"(?<![\\$\w])\$(?![\s$])([^$\n]*[^\s$\\])\$(?![\d$\w])")
MARKS = re.compile(r"[!-/:-@\[-`{-~]")  # the punctuation that Markdown, LaTeX or HTML may take for its own
INDENT = re.compile(r"^[ \t]+", re.MULTILINE)
NO_BREAK_SPACE = "\u00a0"


def harmless(text: str) -> str:
    """Markdown that holds no HTML, no image and no diagram."""
    return "".join(block if is_code else _prose(block) for is_code, block in _blocks(text)).replace("```mermaid", "```Mermaid")


def literal(text: str) -> str:
    """Markdown that shows the text as it was typed."""
    indented = INDENT.sub(lambda indent: NO_BREAK_SPACE * len(indent[0].expandtabs(4)), text)
    return MARKS.sub(lambda mark: f"&#{ord(mark[0])};", indented)


def _blocks(text: str) -> Iterator[tuple[bool, str]]:
    """The text in parts, in order: whether it is fenced code, and its lines."""
    block, fence = "", ""
    for line in text.splitlines(keepends=True):
        opening = None if fence else FENCE.match(line)
        if opening:
            yield False, block
            block, fence = line, opening[1]
        elif fence and _closes(line, fence):
            yield True, block + line
            block, fence = "", ""
        else:
            block += line
    yield bool(fence), block


def _closes(line: str, fence: str) -> bool:
    mark = line.strip(" \t>\r\n")
    return len(mark) >= len(fence) and set(mark) == {fence[0]}


def _prose(block: str) -> str:
    return "".join(map(_paragraph, PARAGRAPH_END.split(block)))


def _paragraph(text: str) -> str:
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [_words(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _words(text[end:])])


def _words(text: str) -> str:
    escaped = text.replace("<", "&lt;").replace("![", "[image: ")
    return DOLLARS.sub(r"\\(\1\\)", escaped)
