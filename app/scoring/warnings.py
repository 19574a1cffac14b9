"""What makes a score less sure than it looks: plain measures of a text and of its columns, each with its border. Knows no model."""

from collections.abc import Iterator, Sequence

from app.engine.request import Columns
from app.schemas import Caution

SHORT = 128  # scored tokens under which errors are more common
ENGLISH = 0.15  # share of the commonest words; 4 of 7,798 English texts of news and stories have less, German and French about 0.05
COMMON = frozenset(
    "the of and to a in is that it was he for on are as with his they i at be this have from or one had by not but what all were we when "
    "your can said there use an each which she do how their if will up other about out many then them these so some her would make like "
    "him into time has look two more go see no way could my than been who its now did get come made may me you".split()
)
LATIN = 0x24F  # last letter of the Latin blocks
DISTINCT = 0.6  # share of different sequences of GRAM tokens; the least of 388 human texts was 0.88
GRAM = 4
KNOWN_NATS = 0.7  # mean surprise under which a text looks learned by heart
RUN = 40  # tokens in a row that the model held the likeliest


def warnings(content: str, tokens: Sequence[int], columns: Columns) -> Iterator[tuple[Caution, str]]:
    """Codes and sentences, the heaviest last."""
    count = len(columns.logprob)
    if count < SHORT:
        yield "short", f"only {count} tokens could be scored: verdicts on fewer than {SHORT} are wrong more often"
    letters = [letter for letter in content if letter.isalpha()]
    words = [word.strip(".,;:!?\"'“”‘’()").lower() for word in content.split()]
    foreign = sum(ord(letter) > LATIN for letter in letters) > len(letters) / 2
    if foreign or (len(words) >= 20 and sum(word in COMMON for word in words) < ENGLISH * len(words)):
        yield "not_english", "this does not read like English prose: the detector was made and measured on nothing else"
    grams = [tuple(tokens[at : at + GRAM]) for at in range(len(tokens) - GRAM + 1)]
    if len(grams) >= SHORT and len(set(grams)) < DISTINCT * len(grams):
        yield "repeated", "the text repeats itself: repetition alone makes any text look like a machine's"
    if count and (-sum(columns.logprob) / count < KNOWN_NATS or _longest_run(columns.rank) >= RUN):
        yield "memorised", "the model foresaw this text nearly word for word: famous texts look like a machine's without being one"


def _longest_run(ranks: Sequence[int]) -> int:
    longest = run = 0
    for rank in ranks:
        run = run + 1 if rank == 1 else 0
        longest = max(longest, run)
    return longest
