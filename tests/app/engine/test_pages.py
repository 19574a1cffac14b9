"""The policy of pages: which is taken next, and what is found in those that are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.pages import Content, Found, PageCounts, PagePool, Space, common_prefix_length, digest_of

BASE, ADAPTER = Space(), Space("adapter")
TEXT = tuple(range(100, 112))  # three pages of four tokens


def fill(pool: PagePool, tokens: tuple[int, ...], space: Space = BASE, owner: str | None = None) -> list[int]:
    """Pages of a sequence that was computed, is kept and has ended."""
    pages, before = [], space.root
    for start in range(0, len(tokens), pool.page_tokens):
        content = Content(space, before, tokens[start : start + pool.page_tokens])
        page = pool.take(owner)
        assert page is not None
        pool.keep(page, content)
        pages.append(page)
        before = digest_of(before, content.tokens)
    for page in reversed(pages):
        pool.drop(page)
    return pages


def taken(pool: PagePool, count: int) -> list[int | None]:
    return [pool.take() for _ in range(count)]


def test_pages_are_taken_in_the_order_of_what_is_lost_with_them() -> None:
    pool = PagePool(6, 4)
    assert fill(pool, TEXT) == [0, 1, 2], "pages never used, from the first on"
    assert pool.take() == 3
    pool.drop(3)
    assert taken(pool, 3) == [3, 4, 5], "one that was used and holds nothing comes before one that was never used"
    assert taken(pool, 3) == [2, 1, 0], "then what was used least recently, a sequence's end before its beginning"
    assert pool.take() is None, "all are used"
    assert pool.find(BASE, TEXT, []) == Found()


def test_what_is_found_again_is_forgotten_last() -> None:
    pool = PagePool(6, 4)
    fill(pool, TEXT)
    fill(pool, tuple(range(12)))
    for page in (0, 1):
        pool.share(page)
    for page in (1, 0):
        pool.drop(page)
    assert taken(pool, 6) == [2, 5, 4, 3, 1, 0]


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (TEXT, Found((0, 1, 2), 12)),
        (TEXT + (1, 2, 3, 4, 5), Found((0, 1, 2), 12)),
        (TEXT[:8], Found((0, 1), 8)),
        (TEXT[:10], Found((0, 1), 10, 2, 2, 2)),
        (TEXT[:5] + (7, 7, 7), Found((0,), 5, 1, 1, 3)),
        (TEXT[:3], Found((), 3, 0, 3, 1)),
        (TEXT[:3] + (200, 9), Found((3,), 4)),
        (TEXT[:3] + (150, 9), Found((), 3, 0, 3, 1)),
        (TEXT[4:], Found()),
        ((), Found()),
    ],
)
def test_the_longest_beginning_is_found_up_to_the_token(tokens: tuple[int, ...], found: Found) -> None:
    pool = PagePool(8, 4)
    fill(pool, TEXT)
    other = pool.take()
    assert other == 3
    pool.keep(other, Content(BASE, BASE.root, (*TEXT[:3], 200)))
    assert pool.find(BASE, tokens, []) == found
    assert pool.find(ADAPTER, tokens, []) == Found(), "another space"


def test_known_digests_are_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, digests = PagePool(8, 4), list[bytes]()
    fill(pool, TEXT)
    found = pool.find(BASE, TEXT, digests)
    assert len(digests) == 3
    monkeypatch.setattr("app.engine.pages.digest_of", None)
    assert pool.find(BASE, TEXT, digests) == found


def test_the_same_content_is_found_in_one_page_only() -> None:
    pool = PagePool(8, 4)
    assert fill(pool, TEXT[:6]) == [0, 1] and fill(pool, TEXT[:6]) == [2, 3]
    assert pool.find(BASE, TEXT[:6], []) == Found((0,), 6, 1, 2, 0)
    assert pool.counts() == PageCounts(used=0, shared=0, cached=2, free=6)


def test_a_content_that_grows_is_found_whole_and_one_that_is_overwritten_is_not_found() -> None:
    pool = PagePool(2, 4)
    page = pool.take()
    assert page == 0
    pool.keep(page, Content(BASE, BASE.root, TEXT[:2]))
    pool.keep(page, Content(BASE, BASE.root, TEXT[:4]))
    assert pool.find(BASE, TEXT[:3], []) == Found((), 3, 0, 3, 1) and pool.find(BASE, TEXT, []) == Found((0,), 4)
    pool.cut(page, 4)
    assert pool.find(BASE, TEXT, []) == Found((0,), 4), "it is written behind its content"
    pool.cut(page, 3)
    assert pool.find(BASE, TEXT, []) == Found()
    pool.drop(page)
    assert pool.counts() == PageCounts(used=0, shared=0, cached=0, free=2)


def test_what_an_adapter_computed_is_found_by_no_other_and_forgotten_with_it() -> None:
    pool = PagePool(9, 4)
    fill(pool, TEXT)
    fill(pool, TEXT, ADAPTER)
    assert pool.find(ADAPTER, TEXT, []).pages == (3, 4, 5) and pool.find(BASE, TEXT, []).pages == (0, 1, 2)
    pool.share(3)
    pool.forget("adapter")
    assert pool.find(ADAPTER, TEXT, []) == Found() and pool.find(BASE, TEXT, []).pages == (0, 1, 2)
    assert pool.counts() == PageCounts(used=1, shared=0, cached=3, free=5)


def test_an_owner_with_more_than_its_share_loses_its_own_pages_first() -> None:
    pool = PagePool(8, 4)
    fill(pool, tuple(range(16)), owner="a")
    fill(pool, tuple(range(50, 66)), owner="b")
    assert [pool.take("b") for _ in range(2)] == [7, 6], "b has half of the pages"
    assert [pool.take("a"), pool.take("c")] == [3, 2], "so has a; c has none, and takes what was used least recently"
    assert [pool.take("b") for _ in range(2)] == [5, 4]
    assert pool.take("b") == 1, "none of its own is left that is not used"
    assert pool.take(None) == 0 and pool.take("a") is None


def test_an_owner_without_pages_is_forgotten() -> None:
    pool = PagePool(4, 4)
    for number in range(20):
        fill(pool, (number,) * 4, owner=f"user {number}")
    assert len(pool._held) == 4


def test_without_owners_the_least_recently_used_page_is_taken_whoever_has_most() -> None:
    pool = PagePool(4, 4)
    fill(pool, tuple(range(12)))
    fill(pool, TEXT[:4])
    assert taken(pool, 4) == [2, 1, 0, 3]


def test_counts_tell_each_page_once() -> None:
    pool = PagePool(9, 4)
    pages = fill(pool, TEXT)
    for page in (*pages[:2], pages[0]):
        pool.share(page)
    assert pool.counts() == PageCounts(used=2, shared=1, cached=1, free=6)


@given(st.lists(st.integers(0, 3), max_size=300), st.lists(st.integers(0, 3), max_size=300), st.integers(0, 300))
def test_the_common_prefix_has_the_length_that_a_plain_loop_finds(a: list[int], b: list[int], shared: int) -> None:
    b = a[:shared] + b
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix_length(tuple(a), b) == expected
