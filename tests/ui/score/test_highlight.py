import html
import re
import time

import pytest

from app.schemas import SentenceScore, TokenScore
from tests.ui.score.test_report import score
from ui.score import highlight

FAMILY = "👨\u200d👩\u200d👧"


def token(text: str, rank: int = 1, start: int = 0, end: int | None = None) -> TokenScore:
    return TokenScore(text=text, start=start, end=start + len(text) if end is None else end, logprob=-2.31, rank=rank, entropy=3.02)


def sentence(start: int, end: int, value: float | None = 0.75, tokens: int = 9) -> SentenceScore:
    return SentenceScore(start=start, end=end, tokens=tokens, score=value, logprob=None if value is None else -1.5)


def copied_text(html_text: str) -> str:
    """The text a visitor would copy: every character, without the marks."""
    run = re.search(r'<div class="run">(.*?)</div>', html_text, re.DOTALL)
    assert run is not None
    return html.unescape(re.sub(r"<[^>]*>|↵", "", run[1]))


@pytest.mark.parametrize(("rank", "bucket"), [(1, 0), (10, 0), (11, 1), (100, 1), (101, 2), (1000, 2), (1001, 3), (150_000, 3)])
def test_the_bucket_of_a_rank(rank, bucket):
    assert f'class="t b{bucket}"' in highlight.tokens_html([token("a", rank)], "a")


def test_hostile_text_is_escaped_and_line_breaks_shown():
    text = "<script>alert(1)</script>${value}{{value}}a\r\n"
    html_text = highlight.tokens_html([token(text[:25]), token(text[25:42], start=25), token(text[42:], start=42)], text)
    assert not any(mark in html_text for mark in ("<script", "${", "{{"))
    assert 'a<i class="eol">↵</i>\n</span>' in html_text


def test_hostile_scored_text_is_escaped_in_its_attribute():
    html_text = highlight.tokens_html([token('"><img src=x>{{', end=4)], "aaaa")
    assert 'data-r="&quot;&gt;&lt;img src=x&gt;&#123;&#123;"' in html_text


def test_tokens_have_their_numbers_and_one_tab_stop():
    html_text = highlight.tokens_html([token("a", 5), token("b", 50, start=1)], "ab")
    assert 'data-n="-2.310 5 3.020"' in html_text
    assert (html_text.count('tabindex="0"'), html_text.count('tabindex="-1"'), html_text.count("data-r")) == (1, 1, 0)


def test_text_that_no_token_covers_is_shown_uncoloured():
    html_text = highlight.tokens_html([token("upon", start=5), token("a", start=10)], "O<ce upon a ")
    assert '<span class="unscored">O&lt;ce </span>' in html_text
    assert copied_text(html_text) == "O<ce upon a "


def test_a_character_of_several_tokens_is_shown_once():
    tokens = [token("a"), token("é", start=1), token("é", start=1), token("b", start=2)]
    assert copied_text(highlight.tokens_html(tokens, "aéb")) == "aé·b"


def test_zero_width_characters_are_shown_where_they_were_sent():
    text = "\ufeffO\u200bne\u200b \u200dtwo\u202e"
    html_text = highlight.tokens_html([token("One", start=1, end=5), token(" two", start=6, end=11)], text)
    assert copied_text(html_text) == text
    assert (
        'data-r="One">O<i class="unseen" title="U+200B, not visible">\u200b</i>ne</span><span class="unscored"><i class="unseen"'
        in html_text
    )
    assert html_text.count('class="unseen"') == 5


def test_an_emoji_of_several_characters_is_not_lost():
    text = f"So {FAMILY}!"
    tokens = [token("👨", start=3), token("👨", start=3), token("👩", start=5), token("👧", start=7), token("!", start=8)]
    assert copied_text(highlight.tokens_html(tokens, text)) == f"So 👨·{FAMILY[1:]}!"


def test_look_alike_letters_are_shown_as_sent_with_the_scored_text_in_an_attribute():
    html_text = highlight.tokens_html([token("scope")], "ѕсоре")
    assert copied_text(html_text) == "ѕсоре"
    assert 'data-r="scope"' in html_text


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\u00ad", "\u2060", "\u202e"])
def test_an_invisible_character_is_marked(character):
    assert f"U+{ord(character):04X}" in highlight.text_html(f"a{character}b")


@pytest.mark.parametrize("text", ["a\tb", "a\u2028b", "naïve 日本 👍"])
def test_ordinary_text_has_no_marks(text):
    assert highlight.text_html(text) == text


def test_the_legend_shows_the_percentage_of_each_bucket():
    tokens = [token(text, rank, start) for start, (text, rank) in enumerate({"a": 1, "b": 1, "c": 5000, "d": 500}.items())]
    assert re.findall(r"</span> (\d+)%", highlight.tokens_html(tokens, "abcd")) == ["50", "0", "25", "25"]


def test_a_sentence_has_its_text_its_score_and_its_gauge():
    text = "A <b>fox</b>. It\u200b ran. Hm."
    html_text = highlight.sentences_html(score(), [sentence(0, 14), sentence(14, 23, 1.25, 1), sentence(23, 26, None, 0)], text)
    assert '<span class="words">A &lt;b&gt;fox&lt;/b&gt;.</span>' in html_text
    assert 'title="U+200B, not visible"' in html_text
    assert re.findall(r'style="left:([\d.]+)%"></i></span><b>([\d.]+)</b><small>([^<]+)<', html_text) == [
        ("25.0", "0.750", "9 tokens"), ("75.0", "1.250", "1 token"),
    ]  # fmt: skip
    assert '<span class="place">no score</span><span class="words">Hm.</span>' in html_text
    assert "9 tokens, mean log-probability -1.500" in html_text


def test_a_long_text_takes_under_a_second_and_100_bytes_a_token():
    tokens = [token(" word", index % 3000 + 1, start=5 * index) for index in range(4000)]
    before_s = time.process_time()
    html_text = highlight.tokens_html(tokens, " word" * 4000)
    assert time.process_time() - before_s < 1
    assert html_text.count('class="t b') == 4000
    assert len(html_text) < 100 * 4000
