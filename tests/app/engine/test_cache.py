"""Slots and their pages under random requests: what a slot reads is what it has written, or another with the same beginning."""

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from planning import detokenize

from app.engine.cache import SlotCache
from app.engine.pages import PagePool, Space, digest_of
from app.engine.request import Generate
from app.engine.slot import Slot

PAGE, SLOTS = 20, 5  # tokens; more than are computed again rather than copied
ADAPTERS = (None, "a")
seeds = st.integers(0, 2**32)


def space_of(slot: Slot) -> Space:
    return Space() if slot.request is None else slot.request.space


class Memory(RuleBasedStateMachine):
    """`held` is what would be in the cache: for each page the token, with its space, that each place was last written with."""

    @initialize(pages=st.integers(4, 30))
    def start(self, pages: int) -> None:
        self.cache, self.admissions = SlotCache(PagePool(pages, PAGE)), 0
        self.held: list[list[tuple[int, Space] | None]] = [[None] * PAGE for _ in range(pages)]
        self.slots = [Slot(index) for index in range(SLOTS)]
        self.texts: list[tuple[tuple[int, ...], str | None]] = [((), None)]  # of sequences that have ended, with their adapters

    def copy(self) -> None:
        for copy in self.cache.take_copies():
            assert self.cache.pool.uses(copy.target) <= 1, "a page is written while it is shared"
            self.held[copy.target][: copy.tokens] = self.held[copy.source][: copy.tokens]

    def write(self, slot: Slot, end: int) -> None:
        """What a step does: positions up to `end` are computed."""
        if not self.cache.reserve(slot, end):
            self.copy()
            return
        self.copy()
        for position in range(slot.length, end):
            page = slot.pages[position // PAGE]
            assert self.cache.pool.uses(page) == 1, "a page is written while it is shared"
            self.held[page][position % PAGE] = slot.tokens[position], space_of(slot)
        slot.length = end

    def release(self, slot: Slot) -> None:
        members = slot.group or (slot,)
        for member in members:
            self.cache.release(member)
        for member in members:
            member.release()

    def running(self, rng: random.Random) -> Slot | None:
        running = [slot for slot in self.slots if slot.request is not None]
        return rng.choice(running) if running else None

    @rule(seed=seeds)
    def admit(self, seed: int) -> None:
        """Requests whose prompts begin like an earlier sequence, most often with all of it or but for its last tokens. Many end at once."""
        rng = random.Random(seed)
        for _ in range(rng.randint(1, 4)):
            slot = self.admit_one(rng)
            if slot is not None and rng.random() < 0.6:
                slot.tokens += rng.choices((0, 1, 2), k=rng.randint(0, 30))
                self.write(slot, len(slot.tokens))
                self.texts.append((tuple(slot.tokens[: slot.length]), slot.adapter))
                self.release(slot)

    def admit_one(self, rng: random.Random) -> Slot | None:
        slot = next((slot for slot in self.slots if slot.request is None), None)
        if slot is None:
            return None
        earlier, adapter = rng.choice(self.texts)
        cut = rng.choice([0, 0, 1, 2, rng.randint(0, len(earlier))])
        prompt = (*earlier[: max(0, len(earlier) - cut)], *rng.choices((0, 1, 2), k=rng.randint(1, 50)))
        self.admissions += 1
        owner = rng.choice([None, "me", "you"])
        job = Generate(str(self.admissions), prompt, 1000, adapter=rng.choice([adapter, *ADAPTERS]), owner=owner, private=owner == "me")
        slot.admit(job, self.admissions, detokenize)
        self.cache.adopt(slot)
        assert slot.length < len(slot.tokens)
        return slot

    @rule(seed=seeds)
    def compute(self, seed: int) -> None:
        """A chunk of a prompt, or all of it, or tokens of an answer."""
        rng = random.Random(seed)
        if (slot := self.running(rng)) is None:
            return
        if slot.length == len(slot.tokens):
            slot.tokens += rng.choices((0, 1, 2), k=1 if slot.group else rng.randint(1, 60))
        self.write(slot, rng.choice([len(slot.tokens), rng.randint(slot.length, len(slot.tokens))]))

    @rule(seed=seeds)
    def draft(self, seed: int) -> None:
        """Tokens that are computed, of which some turn out to be others."""
        rng = random.Random(seed)
        if (slot := self.running(rng)) is None or slot.length < len(slot.tokens) or slot.group:
            return
        before = slot.length
        slot.tokens += rng.choices((0, 1, 2), k=rng.randint(1, 25))
        self.write(slot, len(slot.tokens))
        slot.length = rng.randint(before, slot.length)
        del slot.tokens[slot.length :]

    @rule(seed=seeds)
    def keep(self, seed: int) -> None:
        slot = self.running(random.Random(seed))
        if slot is not None and not slot.is_follower:
            self.cache.keep(slot)

    @rule(seed=seeds)
    def adopt(self, seed: int) -> None:
        """A slot that has waited for another, and has computed nothing itself."""
        slot = self.running(random.Random(seed))
        if slot is not None and slot.request is not None and not slot.group and slot.length == slot.cached:
            self.cache.adopt(slot)

    @rule(seed=seeds)
    def search(self, seed: int) -> None:
        """A slot whose prompt is computed becomes a search, with idle slots as its branches; or a search goes on for some steps."""
        rng = random.Random(seed)
        lead = self.running(rng)
        for _ in range(rng.randint(1, 30)):
            if lead is None or lead.is_follower or any(slot.length < len(lead.tokens) for slot in lead.group or (lead,)):
                return
            self.advance(rng, lead)

    def advance(self, rng: random.Random, lead: Slot) -> None:
        assert lead.request is not None
        if not lead.group:
            idle = [slot for slot in self.slots if slot.request is None][:2]
            for slot in idle:
                slot.admit(lead.request, 0, detokenize)
            for slot in (group := (lead, *idle)):
                slot.group = group
            sources = [0] * len(group)
        else:
            sources = [rng.randrange(len(lead.group)) for _ in lead.group]
        tokens = [list(lead.group[source].tokens[: lead.length]) for source in sources]
        self.cache.fork(lead.group, sources, lead.length)
        for slot, held in zip(lead.group, tokens, strict=True):
            slot.tokens = [*held, rng.randrange(3)]
        for slot in lead.group:
            self.write(slot, len(slot.tokens))

    @rule(seed=seeds)
    def end(self, seed: int) -> None:
        if (slot := self.running(random.Random(seed))) is not None:
            self.texts.append((tuple(slot.tokens[: slot.length]), slot.adapter))
            self.release(slot)

    @rule(adapter=st.sampled_from(ADAPTERS))
    def forget(self, adapter: str | None) -> None:
        for slot in self.slots:
            if slot.request is not None and slot.adapter == adapter:
                self.release(slot)
        self.cache.pool.forget(adapter)
        assert not any(content.space.adapter == adapter for content in self.cache.pool._contents.values())

    @invariant()
    def every_slot_reads_its_own_tokens(self) -> None:
        self.copy()
        for slot in self.slots:
            read = [self.held[page][place] for page in slot.pages for place in range(PAGE)][: slot.length]
            assert slot.request is None or read == [(token, space_of(slot)) for token in slot.tokens[: slot.length]]

    @invariant()
    def no_page_leaks(self) -> None:
        pool, lists = self.cache.pool, [page for slot in self.slots for page in slot.pages]
        assert all(pool.uses(page) == lists.count(page) for page in range(pool.count))
        free = [page for page in range(pool.count) if not pool.uses(page) and page not in pool._cached]
        assert sorted(free) == sorted([*pool._empty, *range(pool._fresh, pool.count)])
        assert set(pool._cached) == {page for page in pool._contents if not pool.uses(page)}
        held = [pool._owners[page] for page in range(pool.count) if pool.uses(page) or page in pool._cached]
        assert pool._held == Counter(held)
        counts = pool.counts()
        assert counts.used + counts.cached + counts.free == pool.count and counts.used == len(set(lists))

    @invariant()
    def what_is_found_is_there(self) -> None:
        for slot in self.slots:
            before = space_of(slot).root
            for index, digest in enumerate(slot.digests):
                assert digest == (before := digest_of(before, slot.tokens[PAGE * index : PAGE * (index + 1)]))
        for page, content in self.cache.pool._contents.items():
            assert self.held[page][: len(content.tokens)] == [(token, content.space) for token in content.tokens]


TestMemory = Memory.TestCase
TestMemory.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
