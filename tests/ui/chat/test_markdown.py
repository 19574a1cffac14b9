import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ui.chat.markdown import harmless, literal

HOSTILE = "<img src=http://evil.example/x.png onerror=alert(1)>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, "&lt;img src=http://evil.example/x.png onerror=alert(1)>"),
        ("![x](http://evil.example/x.png)", "[image: x](http://evil.example/x.png)"),
        ("![x][1]\n\n[1]: http://evil.example/x.png", "[image: x][1]\n\n[1]: http://evil.example/x.png"),
        ("a `<b>` c <b>", "a `<b>` c &lt;b>"),
        ("``a`<b>`` <b>", "``a`<b>`` &lt;b>"),
        ("a ` <b>\n\n ` <b>", "a ` &lt;b>\n\n ` &lt;b>"),  # no code span reaches over a blank line
        ("```html\n<b>\n```\n<b>", "```html\n<b>\n```\n&lt;b>"),
        ("- list:\n  ~~~~\n  <b>\n  ~~~\n  ~~~~~\n<b>", "- list:\n  ~~~~\n  <b>\n  ~~~\n  ~~~~~\n&lt;b>"),
        ("> ```\n> <b>\n> ```\n<b>", "> ```\n> <b>\n> ```\n&lt;b>"),
        ("```\n<b>", "```\n<b>\n```\n"),  # still on its way
        ("> ```\n<b>", "> ```\n&lt;b>"),  # a line outside of the quotation ends its code
        ("    ```\n<b>\n```\n<i>", "    ```\n&lt;b>\n```\n&lt;i>"),
        ("$$\n```\n$$\n<b>\n```", "$$\n```\n$$\n&lt;b>\n```"),  # the Chatbot takes the formula out first
        ("$$ ` $$ <b> `", "$$ ` $$ &lt;b> `"),
        ("```mermaid\ngraph\n```", "```Mermaid\ngraph\n```"),
    ],
)
def test_html_and_images_of_an_answer_are_text_and_code_stays(text: str, shown: str):
    assert harmless(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$x^2$ and $y$.", r"\(x^2\) and \(y\)."),
        ("$5 and $10", "$5 and $10"),
        ("$5-$10, US$3 or 4$", "$5-$10, US$3 or 4$"),
        ("$$x < 1$$", "$$x &lt; 1$$"),
        (r"\(a\) \[b\]", r"\(a\) \[b\]"),
        ("`$x$`", "`$x$`"),
        (r"\$a$ b$", r"\$a$ b$"),
    ],
)
def test_dollars_are_formulas_only_where_they_look_like_one(text: str, shown: str):
    assert harmless(text) == shown


@pytest.mark.parametrize(
    "text", [HOSTILE, "*a* _b_ `c` # d [e](f) $g$ | h |", "1. one\n2) two\n- three\n    code", "&lt; &amp; https://x.example"]
)
def test_a_visitors_text_has_no_mark_left_and_reads_as_typed(text: str):
    shown = literal(text)
    assert not re.search(r"[^\w\s&#;]", shown.replace("\u00a0", " "))
    assert html.unescape(shown).replace("\u00a0", " ") == text


def test_a_thought_that_leaves_its_code_open_does_not_change_what_is_code_in_the_answer():
    shown = harmless("```\n<b>\n```\n<i>", "```\nhm")
    assert "```\nhm\n```\n\n\n</details>" in shown and shown.endswith("```\n<b>\n```\n&lt;i>")
    assert "<b>" not in harmless("`<b>` $$", "$$ `")
    assert '<details class="thought" open><summary>Thinking</summary>' in harmless("", "hm", is_thinking=True)


COMMON_MARK = MarkdownIt("commonmark").enable("table")
PIECES = [*"``` ~~~ ` `` ```` ~~~~ - > # $$ \\ ' text".split(), "\n", "\n\n", "> ", "- ", "1. ", "   ", "    ", "\t"]
PIECES += ["<img src=x>", "<b>", "![a](x)", "|a|", "\n|---|\n", "[a]: x '"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=3, max_size=22).map("".join))
def test_no_soup_of_marks_lets_html_or_an_image_through(text: str):
    """`markdown_it` stands for the browser's parser: both are CommonMark."""
    kinds = {token.type for token in all_tokens(COMMON_MARK.parse(harmless(text)))}
    assert kinds.isdisjoint({"html_block", "html_inline", "image"})


def all_tokens(tokens: list[Token]) -> list[Token]:
    return [*tokens, *(child for token in tokens for child in all_tokens(token.children or []))]
