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
    """`held` is what would be in the cache: for each page the token, with its space, that each place was last written with. `states`, of
    models that keep them: for each page the sequence whose state it has.
    """

    @initialize(pages=st.integers(4, 30), has_states=st.booleans())
    def start(self, pages: int, has_states: bool) -> None:
        self.cache, self.admissions, self.has_states = SlotCache(PagePool(pages, PAGE), has_states), 0, has_states
        self.states: list[tuple[Space, tuple[int, ...]] | None] = [None] * pages
        self.held: list[list[tuple[int, Space] | None]] = [[None] * PAGE for _ in range(pages)]
        self.slots = [Slot(index) for index in range(SLOTS)]
        self.texts: list[tuple[tuple[int, ...], str | None]] = [((), None)]  # of sequences that have ended, with their adapters

    def copy(self) -> None:
        for copy in self.cache.take_copies():
            assert self.cache.pool.uses(copy.target) <= 1, "a page is written while it is shared"
            self.held[copy.target][: copy.tokens] = self.held[copy.source][: copy.tokens]
            self.states[copy.target] = self.states[copy.source]

    def write(self, slot: Slot, end: int) -> None:
        """What a step does: positions up to `end` are computed."""
        if not self.cache.reserve(slot, end):
            self.copy()
            return
        self.copy()
        if self.has_states and 0 < slot.length < end:
            state = self.states[slot.pages[(slot.length - 1) // PAGE]]
            assert state == (space_of(slot), tuple(slot.tokens[: slot.length])), "it does not go on from its own state"
        for position in range(slot.length, end):
            page = slot.pages[position // PAGE]
            assert self.cache.pool.uses(page) == 1, "a page is written while it is shared"
            self.held[page][position % PAGE] = slot.tokens[position], space_of(slot)
            self.states[page] = space_of(slot), tuple(slot.tokens[: position + 1])
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
        if (slot := self.running(rng)) is None or (slot.group and self.has_states):  # the slots of a search go on together
            return
        if slot.length == len(slot.tokens):
            slot.tokens += rng.choices((0, 1, 2), k=1 if slot.group else rng.randint(1, 60))
        self.write(slot, rng.choice([len(slot.tokens), rng.randint(slot.length, len(slot.tokens))]))

    @rule(seed=seeds)
    def draft(self, seed: int) -> None:
        """Tokens that are computed, of which some turn out to be others."""
        rng = random.Random(seed)
        if (slot := self.running(rng)) is None or slot.length < len(slot.tokens) or slot.group or self.has_states:
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


def test_what_is_found_has_its_own_state() -> None:
    """Where pages hold states: all of an idle page, or full pages only while it is used, and after a search went on from it."""
    cache, prompt = SlotCache(PagePool(12, PAGE), has_states=True), tuple(range(30))
    lead, follower, other = (Slot(index) for index in range(3))

    def admit(slot: Slot, tokens: tuple[int, ...]) -> int:
        slot.admit(Generate("a", tokens, 100), 0, detokenize)
        cache.adopt(slot)
        return slot.length

    def compute(slot: Slot) -> None:
        assert cache.reserve(slot, len(slot.tokens))
        slot.length = len(slot.tokens)

    def end(*slots: Slot) -> None:
        for slot in slots:
            cache.release(slot)
        for slot in slots:
            slot.release()

    admit(lead, prompt)
    compute(lead)
    cache.keep(lead)
    assert admit(other, (*prompt, 99)) == PAGE, "the first page is full, the second still used"
    end(other)
    end(lead)
    assert admit(lead, (*prompt, 99)) == len(prompt)
    compute(lead)
    assert admit(other, (*prompt, 98)) == PAGE, "the state has gone on"
    end(other)
    end(lead)
    assert admit(lead, (*prompt[:-1], 99)) == PAGE, "no state is that of fewer tokens"
    end(lead)
    prompt = tuple(range(100, 130))
    admit(lead, prompt)
    compute(lead)
    cache.keep(lead)
    follower.admit(lead.request, 0, detokenize)  # type: ignore[arg-type]
    lead.group = follower.group = (lead, follower)
    cache.fork((lead, follower), (0, 0), len(prompt))
    for slot in (lead, follower):
        slot.tokens.append(7)
        compute(slot)
    lead.length = len(prompt)  # as a search ends whose best answer is another one
    end(lead, follower)
    assert admit(other, (*prompt, 99)) == PAGE
