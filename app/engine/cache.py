"""Gives slots the pages of the KV cache: those that hold the beginning of their tokens already, and new ones for what is to be written.

Knows slots and the policy of pages, and no tensors: the copies that a step has to make before its forward are collected.
"""

from collections.abc import Sequence

from app.engine.pages import Content, Found, PageCopy, PagePool, digest_of
from app.engine.request import ContrastiveSearchParams, Generate
from app.engine.slot import Slot

MIN_COPIED_TOKENS = 16  # fewer tokens of a page are computed again, not copied


class SlotCache:
    def __init__(self, pool: PagePool, has_states: bool = False) -> None:
        """`has_states`: each page holds a state, too: that after the last token which its sequence has written there. So what is found ends
        with a full page, or with all that an idle one holds.
        """
        self.pool, self._has_states = pool, has_states
        self.prompt_tokens = self.found_tokens = 0  # of the requests that were admitted
        self._copies: list[PageCopy] = []

    def take_copies(self) -> list[PageCopy]:
        """The copies that are to be made before the next forward, in this order. They are not returned again."""
        copies, self._copies = self._copies, []
        return copies

    def find(self, job: Generate, digests: list[bytes]) -> Found:
        """What the cache holds of the job's tokens, as `PagePool.find` tells it. Never all of them: the last one has to be computed to
        predict the next one.
        """
        if needs_whole_prompt(job):
            return Found()
        found = self.pool.find(job.space, (job.prompt + job.sampled)[:-1], digests)
        if self._has_states and found.tail is not None and (found.tail_rest or self.pool.uses(found.tail)):
            return Found(found.pages, found.tokens - found.tail_tokens)
        return found

    def has_room(self, job: Generate, digests: list[bytes], slots: Sequence[Slot]) -> bool:
        """Whether pages are left for the job's tokens, beside what `slots` still need for theirs and a page for each, with which they go
        on. A search needs room for all that it may ever write: it cannot be set back.
        """
        pool, running = self.pool, [slot for slot in slots if slot.request is not None]
        searches = {slot.request.id: slot.request for slot in running if slot.request is not None and slot.group}
        if job.search is not None and sum(map(self.most_pages, (job, *searches.values()))) > pool.count:
            return False
        found = self.find(job, digests)
        own = pool.pages_for(min(len(job.prompt) + len(job.sampled) + 1, job.room)) - sum(1 for page in found.pages if pool.uses(page))
        return own + sum(map(self._pages_to_come, running)) <= pool.available

    def most_pages(self, job: Generate) -> int:
        """Pages that the job may use at the end."""
        whole, shared = self.pool.pages_for(len(job.prompt) + job.max_tokens), len(job.prompt) // self.pool.page_tokens
        return shared + job.slots_needed * (whole - shared)

    def _pages_to_come(self, slot: Slot) -> int:
        shared = 0 if slot.shared_prefix is None else slot.shared_prefix.tokens // self.pool.page_tokens
        assert slot.request is not None
        held = max(shared, len(slot.pages))
        return min(max(1, self.pool.pages_for(len(slot.tokens) + 1) - held), max(0, self.pool.pages_for(slot.request.room) - held))

    def adopt(self, slot: Slot) -> None:
        """Give the slot what the cache holds of its tokens, if that is more than it has. Full pages are shared. The last one, partly
        filled, becomes the slot's own if no one uses it, and is copied otherwise.
        """
        assert slot.request is not None
        digests: list[bytes] = []
        found = self.find(slot.request, digests)
        takes_over = found.tail is not None and not self.pool.uses(found.tail) and found.tail_rest <= 1
        copies = found.tail is not None and not takes_over and found.tail_tokens >= MIN_COPIED_TOKENS
        tokens = found.tokens if takes_over or copies else found.tokens - found.tail_tokens
        if tokens <= slot.length:
            return
        for page in (*found.pages, *([] if found.tail is None else [found.tail])):
            self.pool.share(page)
        self._drop(slot)
        slot.pages, slot.digests, slot.length = list(found.pages), digests[: len(found.pages)], tokens
        if takes_over and found.tail is not None:
            self.pool.cut(found.tail, found.tail_tokens)
            slot.pages.append(found.tail)
        elif found.tail is not None:
            target = self.pool.take(slot.request.owner) if copies else None
            if target is not None:
                self._copies.append(PageCopy(found.tail, target, found.tail_tokens))
                slot.pages.append(target)
            self.pool.drop(found.tail)
            slot.length = tokens if target is not None else found.tokens - found.tail_tokens
        slot.cached = min(slot.length, len(slot.request.prompt))

    def reserve(self, slot: Slot, end: int) -> bool:
        """Let the slot write its positions from `slot.length` to `end`: on pages that no other sequence uses. Returns False, with what was
        reserved so far, if too few pages are left.
        """
        assert slot.request is not None
        size, owner = self.pool.page_tokens, slot.request.owner
        first, kept = divmod(slot.length, size)
        if first < len(slot.pages) and self.pool.uses(slot.pages[first]) > 1:
            target = self.pool.take(owner)
            if target is None:
                return False
            if kept:
                self._copies.append(PageCopy(slot.pages[first], target, kept))
            self.pool.drop(slot.pages[first])
            slot.pages[first] = target
        missing = -(-end // size) - len(slot.pages)
        if missing <= 0:
            return True
        taken = [page for _ in range(missing) if (page := self.pool.take(owner)) is not None]
        slot.pages += sorted(taken)  # consecutive ones are read faster
        return len(taken) >= missing

    def keep(self, slot: Slot) -> None:
        """Let what a running slot has computed be found. Of a search only the prompt: what follows may change."""
        assert slot.request is not None
        length = min(slot.length, len(slot.request.prompt)) if slot.group else slot.length
        self._keep(slot, self._full_pages(length) if self._has_states else length)

    def release(self, slot: Slot) -> None:
        """Take the pages of a slot that is to be idle. What they hold can be found, except of a search's slots beside the leading one."""
        if not slot.is_follower:
            self._keep(slot, self._full_pages(slot.length) if self._has_states and slot.group else slot.length)
        self._drop(slot)

    def fork(self, slots: Sequence[Slot], sources: Sequence[int], length: int) -> None:
        """Let each slot hold the first `length` tokens of the slot that `sources` names by its index in `slots`. They share the pages."""
        count = -(-length // self.pool.page_tokens)
        forked = [slots[source].pages[:count] for source in sources]
        for page in (page for pages in forked for page in pages):
            self.pool.share(page)
        for slot, pages in zip(slots, forked, strict=True):
            digests = slot.digests
            self._drop(slot)
            slot.pages, slot.digests, slot.length = pages, digests, length

    def clear(self, slots: Sequence[Slot]) -> None:
        """Forget what all pages hold, and take them from the slots, which are all there are."""
        self.pool.clear()
        self._copies.clear()
        for slot in slots:
            slot.pages, slot.digests, slot.length = [], [], 0

    def _full_pages(self, length: int) -> int:
        """How many of `length` tokens are in full pages."""
        return length - length % self.pool.page_tokens

    def _keep(self, slot: Slot, length: int) -> None:
        """Let the slot's first `length` tokens be found."""
        assert slot.request is not None
        size, space = self.pool.page_tokens, slot.request.space
        for start in range(len(slot.digests) * size, length, size):
            before = slot.digests[-1] if slot.digests else space.root
            content = Content(space, before, tuple(slot.tokens[start : min(length, start + size)]))
            self.pool.keep(slot.pages[start // size], content)
            if len(content.tokens) == size:
                slot.digests.append(digest_of(before, content.tokens))

    def _drop(self, slot: Slot) -> None:
        """The last page first: of a sequence the end is forgotten before its beginning."""
        for page in reversed(slot.pages):
            self.pool.drop(page)
        slot.pages, slot.digests = [], []


def needs_whole_prompt(job: Generate) -> bool:
    """Whether the hidden states of all tokens of the prompt are needed, so that none can be taken from the cache."""
    return job.prompt_logprobs is not None or isinstance(job.search, ContrastiveSearchParams)
