"""Forms that are no JSON: what they allow, what is refused by name, and that no hostile one keeps the process busy."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from llguidance import LLMatcher

from app.forms.lark import MAX_CHARS, MAX_RULES, FormRefused, choice_grammar, regex_grammar, written_grammar
from app.forms.reasoning import ReasoningFormat, after_thought
from app.forms.tools import AddedTokens
from app.forms.trial import byte_tokenizer

ARITHMETIC = 'root ::= expr\nexpr ::= term (("+" | "-") term)*\nterm ::= num | "(" expr ")"\nnum ::= [0-9]+ # digits'
LIST = 'start: NUMBER ("," NUMBER)*  // %json & ~ in a comment\nNUMBER: /[0-9]+/\n%ignore " "'


def accepts(grammar: str, text: str) -> bool:
    matcher, content = LLMatcher(byte_tokenizer(), grammar, log_level=0), text.encode()
    return matcher.try_consume_tokens(list(content)) == len(content) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"\d{4}-\d{2}-\d{2}", ["2024-01-31"], ["2024-1-31", "2024-01-311", "２024-01-31", ""]),
        (r"[\d-]+\D", ["5-x"], ["x"]),
        ("a/b[/]", ["a/b/"], ["ab"]),
        ("/", ["/"], [""]),
        ("", [""], ["a"]),
        ("a\nb", ["a\nb"], ["ab"]),
        ("^yes$|^no$", ["yes", "no"], ["yesno", "^yes$"]),
        ("(?i)ja|é", ["JA", "é"], ["e"]),
        ("a\x7f\\\\", ["a\x7f\\"], ["a"]),
    ],
)
def test_an_answer_matches_the_whole_pattern(pattern: str, right: list[str], wrong: list[str]) -> None:
    grammar = regex_grammar(pattern)
    assert all(accepts(grammar, text) for text in right) and not any(accepts(grammar, text) for text in wrong)


def test_a_choice_is_exactly_one_of_its_texts() -> None:
    texts = ["a", "ab", 'é\n"\\/', "<|im_end|>", "//x", "a\x7f\x00b\u2028", "\\x7f"]
    grammar = choice_grammar(texts)
    assert all(accepts(grammar, text) for text in texts) and not any(accepts(grammar, text) for text in ("", "b", "aab", "//"))
    assert accepts(choice_grammar(["", "a"]), "") and accepts(choice_grammar(["", "a"]), "a") and accepts(choice_grammar([""]), "")
    assert accepts(choice_grammar([f"w{place}" for place in range(3000)]), "w2999")


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (ARITHMETIC, ["1+(2-33)"], ["1+", "(1", ""]),
        (LIST, ["1, 22 ,3"], [",", "1,"]),
        (r'root ::= "\u0041\x42\n" [\u00e0-\u00fc\x5E\x2D]+ [\x5B\x5D]', ["AB\nàü^-["], ["AB\na["]),
        (r'root ::= "\x22\x5C" [^"\\\x00-\x1F]', ['"\\a'], ['"\\\\']),
        ('?start: sum\n?sum: product | sum "+" product -> add\n?product: INT\n%import common.INT', ["1+22"], ["1+"]),
        ('start: x{2,3}\nx: "a" | "b"', ["ab", "aba"], ["a", "abab"]),
        ('start: "}" TEXT "{"\nTEXT: /[^{}]+/', ["}x{"], ["x"]),
    ],
)
def test_grammars_of_both_syntaxes(grammar: str, right: list[str], wrong: list[str]) -> None:
    written = written_grammar(grammar)
    assert all(accepts(written, text) for text in right) and not any(accepts(written, text) for text in wrong)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (regex_grammar("[0-9]+"), "12"),
        (choice_grammar(["a", "b"]), "b"),
        (written_grammar(LIST), "1, 2"),
        (written_grammar(ARITHMETIC), "1+2"),
    ],
)
def test_a_form_may_follow_a_thought(grammar: str, text: str) -> None:
    """Whose rules have names that a client may have taken, too."""
    after = after_thought(grammar, ReasoningFormat("<think>", "</think>"), AddedTokens({}, frozenset(), frozenset()), False, False)
    assert accepts(after, f"<think>any text, {text}</think>\n{text}") and accepts(after, text)
    assert not accepts(after, f"<think>{text}") and not accepts(after, f"<think></think>{text}x")


@pytest.mark.parametrize(
    ("write", "form", "says"),
    [
        (regex_grammar, "a(?=b)", "look-around"),
        (regex_grammar, "[a-z", "unclosed"),
        (regex_grammar, "a)|(b", "unopened"),
        (regex_grammar, "a\\", "ends in a single backslash"),
        (choice_grammar, ["yes", "字" * 4001], "a text has 4,001 characters; at most 4,000"),
        (regex_grammar, "*", "repetition"),
        (regex_grammar, r"\bfoo\b", "lookarounds"),
        (regex_grammar, "[[a]", "escaped"),
        (written_grammar, "", "Empty"),
        (written_grammar, "hello", "line 1, column 6"),
        (written_grammar, "start: x", "unknown name"),
        (written_grammar, 'start: "a" } x', "line 1"),
        (written_grammar, "root ::= x", "'x' not found"),
        (written_grammar, 'x ::= "a"', "root"),
        (written_grammar, 'root ::= "a', "end of input"),
        (written_grammar, 'start: "a" start', "Too many items"),
        (written_grammar, 'start: %json {"type": "object"}', "%json"),
        (written_grammar, "start: %lark {\nstart: %json {}\n}", "%lark"),
        (written_grammar, '%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "%llguidance"),
        (written_grammar, "start: <|im_end|>", "tokens"),
        (written_grammar, "start: <[5]>", "tokens"),
        (written_grammar, 'start: x\nx[temperature=1]: "a"', "temperature"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(write: Callable[[Any], str], form: Any, says: str) -> None:
    with pytest.raises(FormRefused, match=re.escape(says)):
        write(form)


def chain(count: int) -> str:
    """Rules of which each begins with the next one. 3,000 of them overflow llguidance's stack, which kills the process."""
    return "\n".join(["start: r0", *(f'r{place}: r{place + 1} | "a"' for place in range(count)), f'r{count}: "a"'])


HOSTILE: list[tuple[Callable[[Any], str], Any]] = [
    (regex_grammar, "(a{0,1000}){0,1000}"),
    (regex_grammar, "a{1000000}"),
    (regex_grammar, "(ab?c*)?" * 1200),
    (regex_grammar, "(" * 5000 + ")" * 5000),
    (choice_grammar, ["a" * MAX_CHARS, "b"]),
    (choice_grammar, ["字" * 30_000]),
    (written_grammar, "start: X\nX: " + " & ".join(f"/(.*a.{{{place}}})*/" for place in range(12))),
    (written_grammar, "start: X\nX: " + " ".join(f"~/.*a.{{{place}}}.*/" for place in range(12))),
    (written_grammar, chain(MAX_RULES + 1)),
    (written_grammar, chain(3000)),
    (written_grammar, chain(5000).replace(":", " ::=").replace("start", "root")),
    (written_grammar, "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    (written_grammar, "root ::= " + "(" * 5000 + '"a"' + ")" * 5000),
    (written_grammar, "start: start start | /[a-z]/"),
    (written_grammar, 'start: x x x x x x\nx: x x | "a" | "b" | ""'),
    (written_grammar, "\n".join(["start: r0", *(f"r{place}: r{place + 1} r{place + 1} |" for place in range(30)), 'r30: "a" |'])),
    (written_grammar, "\n".join(["start: R0", *(f"R{place}: R{place + 1} R{place + 1}" for place in range(30)), 'R30: "a"'])),
    (written_grammar, "x" * (MAX_CHARS + 1)),
]


@pytest.mark.parametrize(("write", "form"), HOSTILE)
def test_a_hostile_form_is_refused_at_once(write: Callable[[Any], str], form: Any) -> None:
    """The slowest takes a second; without the limits some end the process, and some never end."""
    with pytest.raises(FormRefused):
        write(form)
