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
FENCE = re.compile(r"((?:[ \t]|>|[-*+][ \t]|\d{1,9}[.)][ \t])*)(`{3,}(?=[^`]*$)|~{3,})")  # also in a list or a quotation
LIST = re.compile(r"[ \t]{0,3}([-*+]|\d{1,9}[.)])[ \t]")
LANGUAGE = re.compile(r"[ \t]*[\w+#.-]*[ \t]*\n?")
MARGIN, MARGIN_IN_LIST = 3, 5  # columns before a fence
CODE = re.compile(r"(?<![`\\])(`+)(?!`)([^\n|]*?[^`\n|])\1(?!`)")  # in a table, a bar ends the cell and its code
PARAGRAPH_END = re.compile(r"(\n[ \t]*\n)")
DOLLARS = re.compile(r"(?<![\\$\w])\$(?![\s$])([^$\n]*[^\s$\\])\$(?![\d$\w])")
MARKS = re.compile(r"[!-/:-@\[-`{-~]")  # the punctuation that Markdown, LaTeX or HTML may take for its own
INDENT = re.compile(r"^[ \t]+", re.MULTILINE)
NO_BREAK_SPACE = "\u00a0"


def harmless(text: str, thought: str = "", is_thinking: bool = False) -> str:
    """Markdown that holds no HTML, no image and no diagram; a thought is folded above it, and open while it goes on.

    Where it is not sure what is code, nothing is: then code shows `&lt;` for `<`.
    """
    markdown = _joined(_escaped(text), _escaped(thought), is_thinking)
    return markdown if _is_sure(markdown) else _joined(_words(text), _words(thought), is_thinking)


def _joined(text: str, thought: str, is_thinking: bool) -> str:
    opened, title = (" open", "Thinking") if is_thinking else ("", "Thought")
    folded = f'<details class="thought"{opened}><summary>{title}</summary>\n\n{thought}\n\n</details>\n\n' if thought else ""
    return (folded + text).replace("```mermaid", "```Mermaid")


def _escaped(text: str) -> str:
    return "".join(block if is_code else _prose(block) for is_code, block in _blocks(text))


def _is_sure(markdown: str) -> bool:
    """Whether no formula holds a mark of code: the Chatbot takes formulas out first, and would see the code end elsewhere."""
    for delimiters in LATEX:
        formula = re.compile(f"{re.escape(str(delimiters['left']))}([\\s\\S]+?){re.escape(str(delimiters['right']))}")
        if any("`" in found or "~~~" in found for found in formula.findall(markdown)):
            return False
        markdown = formula.sub("formula", markdown)
    return True


def literal(text: str) -> str:
    """Markdown that shows the text as it was typed."""
    indented = INDENT.sub(lambda indent: NO_BREAK_SPACE * len(indent[0].expandtabs(4)), text)
    return MARKS.sub(lambda mark: f"&#{ord(mark[0])};", indented)


def _blocks(text: str) -> Iterator[tuple[bool, str]]:
    """The text in parts, in order: whether they stay as they are, as code does, and their lines. A fence that is still open is closed."""
    block, fence, margin, in_list = "", "", "", False
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        opening = None if fence else FENCE.match(line)
        if (opening and _is_unsure(opening, line, in_list)) or (fence and _leaves(line, margin)):
            yield bool(fence), block
            yield True, _words("".join(lines[number:]))  # whether more of it is code cannot be told
            return
        if opening:
            yield False, block
            block, margin, fence = line, opening[1], opening[2]
        elif fence and _closes(line, fence):
            yield True, block + line
            block, fence = "", ""
        else:
            block += line
            in_list = bool(LIST.match(line)) or (in_list and (not line.strip() or line[0].isspace()))
    yield bool(fence), block + (f"\n{fence}\n" if fence and not margin else "")


def _is_unsure(opening: re.Match[str], line: str, in_list: bool) -> bool:
    """Whether this may be no fence: one that stands far in without a list, or has more behind it than the name of a language."""
    return _columns(opening[1]) > (MARGIN_IN_LIST if in_list else MARGIN) or not LANGUAGE.fullmatch(line[opening.end() :])


def _leaves(line: str, margin: str) -> bool:
    """Whether a line ends the quotation or the list that its code stands in."""
    if ">" in margin:
        return not line.lstrip().startswith(">")
    text = line.expandtabs(4)
    return bool(line.strip()) and len(text) - len(text.lstrip()) < _columns(margin)


def _columns(margin: str) -> int:
    return len(margin.expandtabs(4))


def _closes(line: str, fence: str) -> bool:
    mark = line.strip(" \t>\r\n")
    return len(mark) >= len(fence) and set(mark) == {fence[0]}


def _prose(block: str) -> str:
    return "".join(map(_paragraph, PARAGRAPH_END.split(block)))


def _paragraph(text: str) -> str:
    """Spans of code stay if each of them begins and ends in one line; otherwise where they end depends on what the lines are."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [text[end : code.start()], code[0]]
        end = code.end()
    parts.append(text[end:])
    if any("`" in words for words in parts[::2]):
        return _words(text)
    return "".join(part if index % 2 else _words(part) for index, part in enumerate(parts))


def _words(text: str) -> str:
    escaped = text.replace("<", "&lt;").replace("![", "[image: ")
    return DOLLARS.sub(r"\\(\1\\)", escaped)
