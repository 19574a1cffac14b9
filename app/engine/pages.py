"""The pages of a KV cache: who uses them, what can be found in them, and which is taken next. Policy only: standard library, no torch.

A page holds the keys and values of a fixed number of consecutive tokens of one sequence, in all layers. Sequences that begin alike share
pages. What stands in a page is found by its tokens and by a digest of all that stands before it; it stays there after the last sequence has
left the page, until the page is needed.
"""

from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

OWNER_SHARE = 0.5  # of all pages: an owner who has more loses what it used least recently, before others lose anything
PAGE_TOKENS = 64  # a multiple of the keys that the compiled kernel reads at a time, so that those lie on one page
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class PageCopy:
    """The first `tokens` tokens of page `source` are to be copied to page `target`."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Space:
    """Sequences of different spaces share nothing: other weights computed their keys and values, or their owner alone may find them."""

    adapter: str | None = None
    owner: str | None = None  # None: everybody finds them

    @property
    def root(self) -> bytes:
        """The digest that stands before the first page."""
        return blake2b(repr((self.adapter, self.owner)).encode(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Content:
    """What can be found in a page. The sequence may have written more behind these tokens, but never changes them."""

    space: Space
    before: bytes  # digest of all that stands before the page
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The beginning of a sequence that is in the cache: full pages, and the first `tail_tokens` tokens of the page `tail`."""

    pages: tuple[int, ...] = ()
    tokens: int = 0  # with those of the tail
    tail: int | None = None
    tail_tokens: int = 0
    tail_rest: int = 0  # further tokens that can be found in the tail, other ones


@dataclass(frozen=True, slots=True)
class PageCounts:
    used: int  # by running sequences
    shared: int  # of those: by several sequences
    cached: int  # used by none, but with a content that can be found
    free: int


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The cache since the engine's start."""

    page_tokens: int
    pages: PageCounts
    prompt_tokens: int  # of the requests that got a slot
    found_tokens: int  # of those: did not have to be computed
    set_back: int  # how often a request had to give its pages to others


class PagePool:
    """A page is used by as many sequences as have taken it (`take`, `share`) and not dropped it. Only one that is used once may be
    written.
    """

    def __init__(self, count: int, page_tokens: int = PAGE_TOKENS) -> None:
        self.count = count
        self.page_tokens = page_tokens
        self.clear()

    def clear(self) -> None:
        """Forget all users and contents."""
        self._uses = [0] * self.count
        self._fresh = 0  # pages from this one on were never used: on a CPU they take no memory yet
        self._owners: list[str | None] = [None] * self.count  # who took the page last
        self._held: Counter[str | None] = Counter()  # pages of each owner that are used or can be found
        self._empty: list[int] = []  # pages without users and content
        self._cached: dict[int, None] = {}  # pages without users, but with a content; the least recently used one first
        self._contents: dict[int, Content] = {}
        self._full: dict[bytes, int] = {}  # full pages, by the digest of all up to their end
        self._siblings: dict[bytes, list[tuple[tuple[int, ...], int]]] = {}  # contents and pages after the same `before`, sorted

    def take(self, owner: str | None = None) -> int | None:
        """A page that holds nothing, for one sequence: an empty one, else one never used, else the one whose content was used least
        recently, which is forgotten; of an `owner` who has more than its share, one of its own. None when all are used.
        """
        if self._empty:
            page = self._empty.pop()
        elif self._fresh < self.count:
            page, self._fresh = self._fresh, self._fresh + 1
        elif self._cached:
            page = self._least_recently_used(owner)
            del self._cached[page]
            self._remove(page)
            self._disown(page)
        else:
            return None
        self._uses[page], self._owners[page] = 1, owner
        self._held[owner] += 1
        return page

    def _least_recently_used(self, owner: str | None) -> int:
        """Of the pages that are not used, but hold something, the one to be taken for the owner."""
        exceeds = owner is not None and self._held[owner] >= OWNER_SHARE * self.count
        own = (page for page in self._cached if self._owners[page] == owner) if exceeds else iter(())
        return next(own, next(iter(self._cached)))

    def share(self, page: int) -> None:
        """Count one more user of a page that is used, or that can be found."""
        if not self._uses[page]:
            del self._cached[page]
        self._uses[page] += 1

    def drop(self, page: int) -> None:
        """Count one user less. The last one leaves what can be found in the page."""
        self._uses[page] -= 1
        if self._uses[page]:
            return
        if page in self._contents:
            self._cached[page] = None
        else:
            self._free(page)

    def uses(self, page: int) -> int:
        return self._uses[page]

    @property
    def available(self) -> int:
        """Pages that no one uses."""
        return len(self._empty) + self.count - self._fresh + len(self._cached)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def keep(self, page: int, content: Content) -> None:
        """Let what stands in a used page be found. Not if another page holds the same already."""
        self._remove(page)
        siblings = self._siblings.get(content.before, [])
        at = bisect_left(siblings, (content.tokens,))
        if at < len(siblings) and siblings[at][0] == content.tokens:
            return
        self._contents[page] = content
        insort(self._siblings.setdefault(content.before, siblings), (content.tokens, page))
        if len(content.tokens) == self.page_tokens:
            self._full[digest_of(content.before, content.tokens)] = page

    def cut(self, page: int, tokens: int) -> None:
        """Before a page is written from its place `tokens` on: a content that reaches further can no longer be found."""
        content = self._contents.get(page)
        if content is not None and len(content.tokens) > tokens:
            self._remove(page)

    def find(self, space: Space, tokens: Sequence[int], digests: list[bytes]) -> Found:
        """The longest beginning of `tokens` that can be found. `digests` are those of the full pages of `tokens`, as far as they are known;
        further ones that are worked out are appended.
        """
        size, pages = self.page_tokens, list[int]()
        before = space.root
        while (end := (len(pages) + 1) * size) <= len(tokens):
            if len(digests) <= len(pages):
                digests.append(digest_of(before, tokens[end - size : end]))
            page = self._full.get(digests[len(pages)])
            if page is None:
                break
            before = digests[len(pages)]
            pages.append(page)
        start = len(pages) * size
        tail, count = self._longest(before, tuple(tokens[start : start + size]))
        rest = 0 if tail is None else len(self._contents[tail].tokens) - count
        return Found(tuple(pages), start + count, tail, count, rest)

    def forget(self, adapter: str | None) -> None:
        """Forget what was computed with an adapter; with None, by the base alone."""
        for page in [page for page, content in self._contents.items() if content.space.adapter == adapter]:
            self._remove(page)
            if page in self._cached:
                del self._cached[page]
                self._free(page)

    def counts(self) -> PageCounts:
        used, cached = sum(1 for uses in self._uses if uses), len(self._cached)
        return PageCounts(used, sum(1 for uses in self._uses if uses > 1), cached, self.count - used - cached)

    def _free(self, page: int) -> None:
        self._empty.append(page)
        self._disown(page)

    def _disown(self, page: int) -> None:
        owner = self._owners[page]
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]

    def _longest(self, before: bytes, tokens: tuple[int, ...]) -> tuple[int | None, int]:
        """The page whose content begins with most of `tokens`, and how many that are. Sorted, it is beside where they would stand."""
        siblings = self._siblings.get(before, [])
        at = bisect_left(siblings, (tokens,))
        beside = [(common_prefix_length(tokens, known), page) for known, page in siblings[max(0, at - 1) : at + 1]]
        count, page = max(beside, key=lambda pair: pair[0], default=(0, None))
        return (page, count) if count else (None, 0)

    def _remove(self, page: int) -> None:
        """Forget the page's content, if it has one."""
        content = self._contents.pop(page, None)
        if content is None:
            return
        siblings = self._siblings[content.before]
        del siblings[bisect_left(siblings, (content.tokens, page))]
        if not siblings:
            del self._siblings[content.before]
        if len(content.tokens) == self.page_tokens:
            del self._full[digest_of(content.before, content.tokens)]


def digest_of(before: bytes, tokens: Sequence[int]) -> bytes:
    """The digest of a full page's tokens and of what stands before them: two that are equal stand for the same tokens."""
    return blake2b(before + array("q", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens with which both sequences begin."""
    limit = min(len(a), len(b))
    at = 0
    while at < limit and list(a[at : at + PAGE_TOKENS]) == list(b[at : at + PAGE_TOKENS]):
        at += PAGE_TOKENS
    at = min(at, limit)
    while at < limit and a[at] == b[at]:
        at += 1
    return at
