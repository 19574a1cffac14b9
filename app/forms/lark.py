"""Forms of an answer that are no JSON, as grammars: a regular expression, a choice of texts, and a grammar in Lark's or llama.cpp's syntax.

    regex_grammar(pattern), choice_grammar(texts), written_grammar(text) -> str    raise `FormRefused` with the reason in a client's words

What would keep llguidance busy or kill the process is refused before it is compiled (docs/structured.md has the measurements), and every
grammar is tried out. Knows no model and no request.
"""

import json
import re
from collections.abc import Sequence

from llguidance import LLParserLimits
from llguidance.gbnf_to_lark import gbnf_to_lark

from app.forms.patterns import regex_size, uses_rust_set_syntax
from app.forms.trial import trial_error
from app.forms.validation import MAX_PATTERN_ATOMS, MAX_PATTERN_CHARS, MAX_TEXT_CHARS, MAX_VARIABLE_REPEATS

MAX_CHARS = 32_768  # of a grammar, or of the texts of a choice together
MAX_RULES = 500  # of a grammar: at 3,000 that follow one another llguidance 1.9.1 overflows its stack and kills the process
MAX_ROW_ITEMS = 500  # ways to read an answer at one place: with 2,000, each of an ambiguous grammar's tokens takes 0.4 s, with 500 0.08 s
WRITTEN = "%lark {\n"  # stands in a grammar that holds a client's, and in no other: a text in it has no line break
GBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.M)
# One element of Lark's syntax. What is not named is a mark of one letter.
TOKEN = re.compile(
    r'(?P<comment>//[^\n]*|\#[^\n]*)|(?P<string>"(?:\\.|[^"\\])*"i?)|/(?P<regex>(?:\\.|[^/\\])+)/[imslux]*'
    r"|(?P<directive>%\w+(?:[ \t]*\{[ \t]*\})?)|(?P<token><[^\s>]*>)|(?P<attribute>\w+[ \t]*=)|\w+|\S",
    re.S,
)
IN_REGEX = re.compile(r"\\.|/|\x7f", re.S)
IN_LARK = {"/": r"\/", "\x7f": r"\x7f", r"\d": "[0-9]"}  # between Lark's slashes
DIRECTIVES = frozenset({"%import", "%ignore", "%llguidance{}"})
ATTRIBUTES = frozenset({"stop", "suffix", "max_tokens"})
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.S)
KEPT_ESCAPES = frozenset("^-")  # characters that mean something else where they stand as they are


class FormRefused(Exception):
    """Why no answer can be held to this form."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def choice_grammar(texts: Sequence[str]) -> str:
    if (size := sum(map(len, texts))) > MAX_CHARS:
        raise FormRefused(f"the texts have {size:,} characters together; at most {MAX_CHARS:,} are supported")
    if (longest := max(map(len, texts))) > MAX_TEXT_CHARS:
        raise FormRefused(f"a text has {longest:,} characters; at most {MAX_TEXT_CHARS:,} are supported")
    words = [json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f") for text in dict.fromkeys(texts) if text]
    if not words:
        return _tried('start: ""')
    start = 'start: "" | CHOICE' if "" in texts else "start: CHOICE"
    return _tried(f"{start}\nCHOICE: {' | '.join(words)}")


def regex_grammar(pattern: str) -> str:
    """The answer as a whole matches the pattern. Its digits are those of ASCII."""
    if uses_rust_set_syntax(pattern):
        raise FormRefused("'[', '&&', '--' and '~~' within a set of characters must be escaped")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise FormRefused("it ends in a single backslash, which escapes nothing; two stand for a backslash")
    _check_regexes([pattern])
    written = IN_REGEX.sub(lambda found: IN_LARK.get(found[0], found[0]), pattern)
    return _tried(f"start: /{written}/" if pattern else 'start: ""')


def written_grammar(text: str) -> str:
    """From Lark's syntax, or llama.cpp's (GBNF), which is told by its `::=`."""
    if len(text) > MAX_CHARS:
        raise FormRefused(f"it has {len(text):,} characters; at most {MAX_CHARS:,} are supported")
    lark = _lark_of(text) if GBNF.search(text) else text
    _check(lark)
    _tried(lark, LLParserLimits(max_items_in_row=MAX_ROW_ITEMS))
    return f"start: {WRITTEN}{lark}\n}}"  # its rules have names of their own in there


def _lark_of(text: str) -> str:
    if text.count("::=") > MAX_RULES:
        raise FormRefused(f"it has more than {MAX_RULES} rules")
    try:
        return gbnf_to_lark(ESCAPE.sub(_unescaped, text))
    except RecursionError:
        raise FormRefused("it is nested too deep") from None
    except Exception as error:  # noqa: BLE001 - the translator of llguidance raises nothing more exact
        raise FormRefused(str(error) or "it breaks off") from None


def _unescaped(found: re.Match[str]) -> str:
    """A character by its number as itself, where it has no other meaning: llguidance's translator writes such numbers wrongly."""
    number = found[1] or found[2] or found[3]
    letter = "" if number is None or int(number, 16) > 0x10FFFF else chr(int(number, 16))
    if letter in {'"', "\\", "[", "]"}:
        return "\\" + letter
    return letter if letter and letter.isprintable() and letter not in KEPT_ESCAPES else found[0]


def _check(lark: str) -> None:
    """Refuses what llguidance adds to Lark's syntax, as far as it can be hard or is not what an answer consists of."""
    regexes, rules = [], 0
    for token in TOKEN.finditer(lark):
        rules += token[0] == ":"
        regexes += [token["regex"]] if token["regex"] else []
        if token[0] in {"&", "~"}:
            raise FormRefused(
                f"'{token[0]}' is not supported: to match several expressions at once, or the opposite of one, may take forever"
            )
        directive = re.sub(r"\s", "", token["directive"] or "")
        if directive and directive not in DIRECTIVES:
            raise FormRefused(f"{directive[:40]} is not supported")
        if token["token"]:
            raise FormRefused(f"{token[0][:40]} is not supported: tokens cannot be named in a grammar")
        if token["attribute"] and token["attribute"].rstrip("= \t") not in ATTRIBUTES:
            raise FormRefused(f"the attribute {token['attribute'].rstrip('= ')[:40]} is not supported")
    if rules > MAX_RULES:
        raise FormRefused(f"it has {rules} rules; at most {MAX_RULES} are supported")
    _check_regexes(regexes)


def _check_regexes(patterns: Sequence[str]) -> None:
    sizes = [regex_size(pattern) for pattern in patterns if len(pattern) <= MAX_PATTERN_CHARS]
    if len(sizes) < len(patterns):
        raise FormRefused(f"a regular expression has more than {MAX_PATTERN_CHARS:,} characters")
    if (atoms := sum(size.atoms for size in sizes)) > MAX_PATTERN_ATOMS:
        raise FormRefused(
            f"regular expressions have {atoms:,} characters with repetitions written out; at most {MAX_PATTERN_ATOMS:,} are supported"
        )
    repeats = max((size.variable_repeats for size in sizes if size.several_variable), default=0)
    if repeats > MAX_VARIABLE_REPEATS:
        raise FormRefused(
            f"several repetitions {{m,n}} repeat up to {repeats:,} times together; at most {MAX_VARIABLE_REPEATS:,} are supported"
        )


def _tried(grammar: str, limits: LLParserLimits | None = None) -> str:
    error = trial_error(grammar, limits)
    if error:
        raise FormRefused(_reason(error))
    return grammar


def _reason(error: str) -> str:
    """llguidance's error in one line."""
    if error.startswith("NoExtension"):
        return "no answer can match it"
    reason = re.search(r"^error: (.*)", error, re.M)
    if "regex" in error and reason:
        return f"a regular expression is not valid: {reason[1]}"
    line = error.strip().partition("\n")[0][:300]
    return re.sub(r"^(?:at )?(\d+)\((\d+)\):", r"line \1, column \2:", line)
