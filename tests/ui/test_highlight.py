import html
import re
import time

import pytest

from app.schemas import SentenceScore, TokenScore
from tests.ui.test_report import score
from ui import highlight

FAMILY = "👨\u200d👩\u200d👧"


def token(text: str, rank: int = 1, start: int = 0, end: int | None = None) -> TokenScore:
    return TokenScore(text=text, start=start, end=start + len(text) if end is None else end, logprob=-2.31, rank=rank, entropy=3.02)


def sentence(start: int, end: int, value: float | None = 0.75, tokens: int = 9) -> SentenceScore:
    return SentenceScore(start=start, end=end, tokens=tokens, score=value, logprob=None if value is None else -1.5)


def plain(shown: str) -> str:
    """What a reader could copy: every character, without the marks."""
    run = re.search(r'<div class="run">(.*?)</div>', shown, re.DOTALL)
    assert run is not None
    return html.unescape(re.sub(r"<[^>]*>|↵", "", run[1]))


@pytest.mark.parametrize(("rank", "bucket"), [(1, 0), (10, 0), (11, 1), (100, 1), (101, 2), (1000, 2), (1001, 3), (150_000, 3)])
def test_the_bucket_of_a_rank(rank, bucket):
    assert f'class="t b{bucket}"' in highlight.tokens([token("a", rank)], "a")


def test_hostile_text_is_escaped_and_line_breaks_shown():
    text = "<script>alert(1)</script>${value}{{value}}a\r\n"
    shown = highlight.tokens([token(text[:25]), token(text[25:42], start=25), token(text[42:], start=42)], text)
    assert not any(mark in shown for mark in ("<script", "${", "{{"))
    assert 'a<i class="eol">↵</i>\n</span>' in shown


def test_hostile_text_that_was_read_otherwise_stays_in_its_attribute():
    shown = highlight.tokens([token('"><img src=x>{{', end=4)], "aaaa")
    assert 'data-r="&quot;&gt;&lt;img src=x&gt;&#123;&#123;"' in shown


def test_tokens_carry_their_numbers_and_one_tab_stop():
    shown = highlight.tokens([token("a", 5), token("b", 50, start=1)], "ab")
    assert 'data-n="-2.310 5 3.020"' in shown
    assert (shown.count('tabindex="0"'), shown.count('tabindex="-1"'), shown.count("data-r")) == (1, 1, 0)


def test_what_no_token_covers_is_shown_uncoloured():
    shown = highlight.tokens([token("upon", start=5), token("a", start=10)], "O<ce upon a ")
    assert '<span class="unscored">O&lt;ce </span>' in shown
    assert plain(shown) == "O<ce upon a "


def test_a_character_of_several_tokens_is_shown_once():
    tokens = [token("a"), token("é", start=1), token("é", start=1), token("b", start=2)]
    assert plain(highlight.tokens(tokens, "aéb")) == "aé·b"


def test_zero_width_characters_stay_where_they_were_sent():
    text = "\ufeffO\u200bne\u200b \u200dtwo\u202e"
    shown = highlight.tokens([token("One", start=1, end=5), token(" two", start=6, end=11)], text)
    assert plain(shown) == text
    assert (
        'data-r="One">O<i class="unseen" title="U+200B, not visible">\u200b</i>ne</span><span class="unscored"><i class="unseen"' in shown
    )
    assert shown.count('class="unseen"') == 5


def test_an_emoji_of_several_characters_is_not_lost():
    text = f"So {FAMILY}!"
    tokens = [token("👨", start=3), token("👨", start=3), token("👩", start=5), token("👧", start=7), token("!", start=8)]
    assert plain(highlight.tokens(tokens, text)) == f"So 👨·{FAMILY[1:]}!"


def test_look_alikes_are_shown_as_sent_and_said_as_read():
    shown = highlight.tokens([token("scope")], "ѕсоре")
    assert plain(shown) == "ѕсоре"
    assert 'data-r="scope"' in shown


@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\u00ad", "\u2060", "\u202e"])
def test_an_invisible_character_is_marked(letter):
    assert f"U+{ord(letter):04X}" in highlight.shown(f"a{letter}b")


@pytest.mark.parametrize("text", ["a\tb", "a\u2028b", "naïve 日本 👍"])
def test_ordinary_text_has_no_marks(text):
    assert highlight.shown(text) == text


def test_the_legend_gives_shares():
    tokens = [token(text, rank, start) for start, (text, rank) in enumerate({"a": 1, "b": 1, "c": 5000, "d": 500}.items())]
    assert re.findall(r"</span> (\d+)%", highlight.tokens(tokens, "abcd")) == ["50", "0", "25", "25"]


def test_a_sentence_has_its_words_its_number_and_its_place():
    text = "A <b>fox</b>. It\u200b ran. Hm."
    shown = highlight.sentences(score(), [sentence(0, 14), sentence(14, 23, 1.25, 1), sentence(23, 26, None, 0)], text)
    assert '<span class="words">A &lt;b&gt;fox&lt;/b&gt;.</span>' in shown
    assert 'title="U+200B, not visible"' in shown
    assert re.findall(r'style="left:([\d.]+)%"></i></span><b>([\d.]+)</b><small>([^<]+)<', shown) == [
        ("25.0", "0.750", "9 tokens"), ("75.0", "1.250", "1 token"),
    ]  # fmt: skip
    assert '<span class="place">no score</span><span class="words">Hm.</span>' in shown
    assert "9 tokens, mean log-probability -1.500" in shown


def test_a_long_text_is_quick_and_small():
    tokens = [token(" word", index % 3000 + 1, start=5 * index) for index in range(4000)]
    before_s = time.process_time()
    shown = highlight.tokens(tokens, " word" * 4000)
    assert time.process_time() - before_s < 1
    assert shown.count('class="t b') == 4000
    assert len(shown) < 100 * 4000
