import pytest

from app.engine.events import Columns
from app.engine.request import Score
from app.schemas import MIN_SCORED_TOKENS
from app.scoring.normalize import normalize
from app.scoring.prepare import PreparedText
from app.scoring.warnings import MEMORISED_RUN_TOKENS, SHORT_TOKENS, warnings
from app.tokenizer import Encoded

ENGLISH = "it was the best of times and it was the worst of times for the king and his three sons who were not at home that day"


def columns(count: int, surprise: float = 3.0, rank: int = 9) -> Columns:
    return Columns((-surprise,) * count, (rank,) * count)


def codes(content: str = ENGLISH, tokens: list[int] | None = None, statistics: Columns | None = None) -> list[str]:
    return codes_of(content, tuple(range(300)) if tokens is None else tuple(tokens), statistics or columns(300))


def codes_of(sent: str, tokens: tuple[int, ...], statistics: Columns, *limits: float | None) -> list[str]:
    return [code for code, _ in found(sent, tokens, statistics, *limits)]


def found(sent: str, tokens: tuple[int, ...], statistics: Columns, *limits: float | None) -> list[tuple[str, str]]:
    """The tokens share the text's characters evenly."""
    text = normalize(sent, collapse=True)
    ends = [(index + 1) * len(text.content) // max(1, len(tokens)) for index in range(len(tokens))]
    encoded = Encoded(tokens, tuple(zip([0, *ends[:-1]], ends, strict=True)))
    prepared = PreparedText(sent, text, encoded, Score("s", tokens, ()))
    return list(warnings(prepared, statistics, *limits))


def test_an_ordinary_text_gets_no_warning() -> None:
    assert codes() == []


@pytest.mark.parametrize(("count", "expected"), [(SHORT_TOKENS - 1, ["short"]), (SHORT_TOKENS, []), (0, ["short"])])
def test_short(count: int, expected: list[str]) -> None:
    assert codes(statistics=columns(count)) == expected


def test_not_english() -> None:
    german = "Es war einmal ein König, der hatte drei Söhne, und als er alt wurde, rief er sie alle zu sich und sprach zu ihnen davon"
    assert codes(german) == ["not_english"]
    assert codes("从前有一个国王，他有三个儿子。") == ["not_english"]
    assert codes("Es war einmal") == []  # too few words to decide
    assert codes(ENGLISH.replace(" ", "") * 4) == ["not_english"]  # blanks were removed


def test_repeated() -> None:
    assert codes(tokens=[1, 2, 3] * 100) == ["repeated"]
    assert codes(tokens=[*range(200), *range(100)]) == []
    for count, expected in (
        (MIN_SCORED_TOKENS, ["short", "repeated"]),
        (MIN_SCORED_TOKENS - 1, ["short"]),
    ):  # as soon as there is a verdict
        assert codes_of(" ".join(ENGLISH.split()), tuple([1, 2, 3] * count)[: count + 1], columns(count)) == expected


def test_memorised() -> None:
    assert codes(statistics=columns(300, 0.5)) == ["memorised"]
    run = Columns((-3.0,) * 300, (9,) * 100 + (1,) * MEMORISED_RUN_TOKENS + (9,) * (200 - MEMORISED_RUN_TOKENS))
    assert codes(statistics=run) == ["memorised"]
    broken = Columns((-3.0,) * 300, ((1,) * (MEMORISED_RUN_TOKENS - 1) + (2,)) * 7 + (9,) * (300 - 7 * MEMORISED_RUN_TOKENS))
    assert codes(statistics=broken) == []


def test_an_answer_of_the_model_itself_is_not_taken_for_a_text_known_by_heart() -> None:
    def likely(surprise: float, entropy: float, run: int = 0) -> list[str]:
        ranks = (1,) * run + (9,) * (300 - run)
        return codes_of(ENGLISH, tuple(range(300)), Columns((-surprise,) * 300, ranks, (-entropy,) * 300), None, 1.85)

    assert likely(1.5, 1.5) == likely(1.5, 1.6) == likely(0.2, 0.9) == likely(3.0, 3.0, MEMORISED_RUN_TOKENS) == ["memorised"]
    assert likely(1.5, 2.0) == likely(0.6, 1.2) == likely(1.5, 2.0, MEMORISED_RUN_TOKENS) == likely(3.0, 2.0) == []


def test_a_short_quotation_may_surprise_less_than_the_model_expects() -> None:
    """As the first 102 tokens of Genesis do: 1.46 nats where it expects 1.72."""

    def codes_at(count: int, variance: float) -> list[str]:
        known = Columns((-1.46,) * count, (9,) * count, (-1.72,) * count, (variance,) * count)
        return codes_of(ENGLISH, tuple(range(count)), known, None, 1.85)

    assert codes_at(128, 3.5) == ["memorised"] and codes_at(600, 3.5) == [] and codes_at(128, 0.5) == []


def test_a_text_that_the_tokenizer_cuts_small_is_not_english() -> None:
    text = " ".join(ENGLISH.split() * 10)
    many, few = tuple(range(len(text) // 2)), tuple(range(len(text) // 4))
    assert codes_of(text, many, columns(300), 3.0) == ["not_english"] and codes_of(text, few, columns(300), 3.0) == []
    assert codes_of(text, many, columns(300)) == []
    assert codes_of(text[:100], tuple(range(50)), columns(300), 3.0) == []  # too few tokens to tell


@pytest.mark.parametrize(
    ("text", "code"), [("- one\n- two\n- three\n- four\n", "list"), ("def f(x):\n    return x\n\nprint(f(3))\ny = f(4)\n", "code")]
)
def test_what_is_no_prose_is_named_for_what_it_is(text: str, code: str) -> None:
    assert codes(text) == [code]


def test_a_calibration_knows_what_its_model_has_by_heart() -> None:
    assert codes_of(ENGLISH, tuple(range(300)), columns(300, 1.5), None, 1.75) == ["memorised"]
    assert (
        codes_of(ENGLISH, tuple(range(300)), columns(300, 1.5), None, 1.25) == codes_of(ENGLISH, tuple(range(300)), columns(300, 1.5)) == []
    )


def test_a_quotation_within_a_text() -> None:
    def with_quotation(length: int) -> Columns:
        return Columns((-3.0,) * 100 + (-0.2,) * length + (-3.0,) * 100, (9,) * (200 + length))

    assert codes(statistics=with_quotation(40)) == ["memorised"] and codes(statistics=with_quotation(20)) == []


def test_a_text_of_hardly_a_word_is_told_in_words() -> None:
    said = [found("word", tuple(range(count + 1)), columns(count))[0][1].partition(";")[0] for count in (0, 1, 2)]
    assert said == ["the text is too short to be scored", "only 1 token could be scored", "only 2 tokens could be scored"]
