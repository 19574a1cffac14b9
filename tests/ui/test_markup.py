import html

from ui.markup import escape_html

HOSTILE = "<img src=http://evil.example/x.png onerror=alert(1)> & “don't” {{value}} ${value} `x` &lt;"


def test_escaped_text_has_no_character_of_html_or_templates():
    shown = escape_html(HOSTILE)
    assert not set('<>"{}$`') & set(shown)
    assert html.unescape(shown) == HOSTILE
