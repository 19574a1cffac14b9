import pytest

from app.engine.request import Columns
from app.scoring.warnings import MEMORISED_RUN_TOKENS, SHORT_TOKENS, warnings

ENGLISH = "it was the best of times and it was the worst of times for the king and his three sons who were not at home that day"


def columns(count: int, surprise: float = 3.0, rank: int = 9) -> Columns:
    return Columns((-surprise,) * count, (rank,) * count)


def codes(content: str = ENGLISH, tokens: list[int] | None = None, statistics: Columns | None = None) -> list[str]:
    return [code for code, _ in warnings(content, list(range(300)) if tokens is None else tokens, statistics or columns(300))]


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


def test_repeated() -> None:
    assert codes(tokens=[1, 2, 3] * 100) == ["repeated"]
    assert codes(tokens=[*range(200), *range(100)]) == []


def test_memorised() -> None:
    assert codes(statistics=columns(300, 0.5)) == ["memorised"]
    run = Columns((-3.0,) * 300, (9,) * 100 + (1,) * MEMORISED_RUN_TOKENS + (9,) * (200 - MEMORISED_RUN_TOKENS))
    assert codes(statistics=run) == ["memorised"]
    broken = Columns((-3.0,) * 300, ((1,) * (MEMORISED_RUN_TOKENS - 1) + (2,)) * 7 + (9,) * (300 - 7 * MEMORISED_RUN_TOKENS))
    assert codes(statistics=broken) == []
