"""Warnings about texts on which a verdict is less reliable than its numbers: simple measures of the text and of its columns.

Each measure has a fixed limit, except how many characters a token of English has, which the calibration knows of its tokenizer.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

from app.engine.events import Columns
from app.schemas import MIN_SCORED_TOKENS, WarningCode
from app.scoring.kinds import Kind, kind_of
from app.scoring.prepare import PreparedText

SHORT_TOKENS = 128  # scored tokens; verdicts on shorter texts are wrong more often
MIN_COMMON_SHARE = 0.15  # of words in COMMON_WORDS: less in 4 of 7,798 English texts of news and stories; German and French: about 0.05
MIN_WORDS = 20  # for the share of common words to say anything
MAX_LETTERS_PER_WORD = 12  # English prose has about 4.5: more means that blanks were removed
COMMON_WORDS = frozenset(
    "the of and to a in is that it was he for on are as with his they i at be this have from or one had by not but what all were we when "
    "your can said there use an each which she do how their if will up other about out many then them these so some her would make like "
    "him into time has look two more go see no way could my than been who its now did get come made may me you".split()
)
LAST_LATIN = 0x24F  # code point of the last letter in the Latin blocks
MIN_DISTINCT_SHARE = 0.6  # distinct n-grams as a share of all: the lowest of 388 human texts was 0.88
NGRAM_TOKENS = 4
NOT_ENGLISH = (
    "this is not written like English prose (another language, capitals throughout, or changed letters); the detector was calibrated and "
    "measured on English prose only"
)
NAMES: dict[Kind, str] = {"code": "program code", "table": "a table", "list": "a list", "verse": "verse"}
MEMORISED_NATS = 0.7  # mean surprise per token below which the model seems to know the text by heart
QUOTED_TOKENS = 32
QUOTED_NATS = 0.8  # mean surprise in a passage of so many tokens: none of 149 news and stories of people has less, half of Genesis has
SHARPENED_SHARE = 0.9  # of the model's entropy; a text that surprises it less was drawn at a low temperature (docs/detector.md),
SHARPENED_SPREADS = 1.64  # and by more than so many standard deviations of what the model would draw: 5% of its draws at temperature 1
CERTAIN_NATS = 0.3  # mean surprise per token of a text that leaves the model no doubt: then its entropy tells nothing
MEMORISED_RUN_TOKENS = 40  # consecutive tokens that the model ranked first


DOUBTS: frozenset[WarningCode] = frozenset({"not_english", "code", "table", "list", "verse", "repeated", "memorised"})  # leave no verdict


def warnings(
    prepared: PreparedText, columns: Columns, min_characters_per_token: float | None = None, memorised_nats: float | None = None
) -> Iterator[tuple[WarningCode, str]]:
    """The code and message of each warning that applies, in order of growing weight.

    `min_characters_per_token`: a tokenizer that was made for English cuts other languages into shorter tokens than this.
    `memorised_nats`: a mean surprise per token that lies below those of all people's texts, unless the model knows the text.
    """
    count, content, tokens = len(columns.logprob), prepared.text.content, prepared.encoded.ids
    if count == 0:
        yield "short", "the text is too short to be scored"
    elif count < SHORT_TOKENS:
        scored = "token" if count == 1 else "tokens"
        yield "short", f"only {count} {scored} could be scored; verdicts on fewer than {SHORT_TOKENS} are wrong more often"
    if prepared.truncated:
        yield "truncated", f"only the first {len(tokens)} tokens were scored; send a long text in several parts"
    if (kind := kind_of(prepared.sent)) is not None:
        yield kind, f"this reads like {NAMES[kind]}; the detector was calibrated and measured on running prose only"
    elif not _is_english(content) or (min_characters_per_token and _is_cut_small(prepared, min_characters_per_token)):
        yield "not_english", NOT_ENGLISH
    ngrams = [tuple(tokens[start : start + NGRAM_TOKENS]) for start in range(len(tokens) - NGRAM_TOKENS + 1)]
    if count >= MIN_SCORED_TOKENS and len(set(ngrams)) < MIN_DISTINCT_SHARE * len(ngrams):
        yield "repeated", "the text repeats itself; repetition alone makes any text look like a machine's"
    if count and _is_memorised(columns, MEMORISED_NATS if memorised_nats is None else memorised_nats):
        yield (
            "memorised",
            "the model predicted this text almost word for word; famous texts look like a machine's although people wrote them",
        )


def _is_memorised(columns: Columns, nats: float) -> bool:
    """Known by heart as a whole, or in a long passage of it.

    A person's text, known or not, surprises a model about as much as the model expects (its entropy). One that surprises it clearly less
    is likelier than what the model would draw: an answer at a low temperature, and no quotation.
    """
    count, surprise = len(columns.logprob), -sum(columns.logprob)
    if surprise < CERTAIN_NATS * count:
        return True
    if _is_sharpened(surprise, columns):
        return False
    return surprise < nats * count or _longest_run_of_first_ranks(columns.rank) >= MEMORISED_RUN_TOKENS or _has_known_passage(columns)


def _is_sharpened(surprise: float, columns: Columns) -> bool:
    """Few tokens may surprise less by chance, so a short text has to do so by more."""
    entropy = -sum(columns.mean)
    return surprise < SHARPENED_SHARE * entropy and entropy - surprise > SHARPENED_SPREADS * math.sqrt(sum(columns.variance))


def _has_known_passage(columns: Columns) -> bool:
    total = list(accumulate(columns.logprob, initial=0.0))
    passages = zip(total, total[QUOTED_TOKENS:], strict=False)
    return any(before - after < QUOTED_NATS * QUOTED_TOKENS for before, after in passages)


def _is_cut_small(prepared: PreparedText, min_characters_per_token: float) -> bool:
    tokens = len(prepared.encoded.ids)
    return tokens >= MIN_SCORED_TOKENS and prepared.encoded.offsets[-1][1] < min_characters_per_token * tokens


def _is_english(content: str) -> bool:
    """False if most letters are not Latin, if blanks are missing, or if a text of enough words has few of the common English ones."""
    letters = [letter for letter in content if letter.isalpha()]
    words = [word.strip(".,;:!?\"'“”‘’()").lower() for word in content.split()]
    if sum(ord(letter) > LAST_LATIN for letter in letters) > len(letters) / 2:
        return False
    if len(letters) > MAX_LETTERS_PER_WORD * max(len(words), MIN_WORDS):
        return False
    return len(words) < MIN_WORDS or sum(word in COMMON_WORDS for word in words) >= MIN_COMMON_SHARE * len(words)


def _longest_run_of_first_ranks(ranks: Sequence[int]) -> int:
    longest = run = 0
    for rank in ranks:
        run = run + 1 if rank == 1 else 0
        longest = max(longest, run)
    return longest
