"""What a model needs and which devices hold it, from its config or its GGUF header alone; the arithmetic is that of `app.engine.ledger`.

Knows no wire format and prints nothing.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.capacity import CacheLimits, cache_bytes, size_that_fits, step_bytes, text_bytes, with_context
from app.engine.kernel import kernel
from app.engine.lanes import MAX_LANES
from app.engine.ledger import SLOT_TOKENS, Ledger, fits_beside
from app.errors import SetupError
from app.estimate.device import Device
from app.estimate.tuning import Tuning, tuning_of
from app.models.cache import page_tokens, slot_attention
from app.models.context import context_of, wanted_context
from app.models.footprint import Form, footprint
from app.models.skeleton import served_dtype, skeleton_of
from app.models.source import Source, source_of

FineTune = Literal["lora", "qlora"]
MIB = 2**20
TUNED_TOKENS = 4096  # of a sequence to train on, where the question gives none: a run takes what its longest one needs
CUDA_CONTEXT = 500 * MIB  # of a process on a GPU: context, libraries, workspaces
QUANTIZATIONS = {"cpu": ("none", "int8", "nf4", "int4"), "cuda": ("none", "int8", "int4", "nf4")}  # each smaller than the one before


@dataclass(frozen=True, slots=True)
class Question:
    """How a model is to be served, or fine-tuned. `process` is what a worker takes without a model."""

    path: str
    quantize: str = "none"
    dtype: str = "auto"
    context: int | None = None  # the model's own, or as much as fits
    slots: int = 1
    step_tokens: int = 512
    fine_tune: FineTune | None = None
    process: int = 0
    observer: str | None = None
    cache_tokens: int | None = None
    cache_dtype: Literal["auto", "int8"] = "auto"
    draft: str | None = None
    graphs: bool = True
    text_window: int = 4096


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of a device's memory. `weights` by kind of storage; `slot` is what a slot adds to the cache of all, `text` that for a window of
    a long text, which is all that an observer has, `observer_text`; `draft_cache` is that of a draft model.
    """

    weights: Counter[str]
    slot: int
    slots: int
    text: int
    activations: int
    overhead: int
    dtype: str
    tuning: Tuning | None = None
    observer_text: int = 0
    shared: int | None = None  # the cache of all slots, where its size is asked for
    context: int = 0  # tokens of a sequence
    context_bytes: int = 0
    limits: CacheLimits | None = None  # none for fine-tuning
    draft_cache: int = 0

    @property
    def cache(self) -> int:
        slots = max(self.slot * self.slots, self.context_bytes) if self.shared is None else self.shared
        return slots + self.text + self.observer_text + self.draft_cache

    @property
    def total(self) -> int:
        states = 0 if self.tuning is None else self.tuning.states
        return self.weights.total() + self.cache + self.activations + self.overhead + states

    def ledger(self, memory: int) -> Ledger:
        others = self.overhead + self.observer_text + self.draft_cache
        return Ledger(memory - others, self.weights.total(), self.activations, self.slot, self.text)

    def fits(self, memory: int) -> bool:
        """Whether a device with so many free bytes holds it, by the rule that the engine starts by."""
        if self.limits is not None:
            return self._limits_on(memory) is not None
        return fits_beside(memory - self.overhead, self.weights.total(), self.total - self.overhead - self.weights.total())

    def on(self, memory: int) -> "Need":
        """With the context that such a device holds, where none is asked for; as it is if it does not fit."""
        limits = self._limits_on(memory)
        if self.limits is None or limits is None or limits.context == self.context:
            return self
        ledger, limits = with_context(self.ledger(memory), self.limits, limits.context_pages)
        whole = limits.bytes_of(limits.context_pages, ledger.slot)
        return replace(self, slot=ledger.slot, text=ledger.text, context=limits.context, context_bytes=whole, limits=limits)

    def _limits_on(self, memory: int) -> CacheLimits | None:
        try:
            return None if self.limits is None else size_that_fits(self.ledger(memory), self.limits, "the device")
        except SetupError:
            return None


@dataclass
class Plan:
    """Answers questions about one model. The skeleton is built once, and what does not depend on a device's memory is computed once."""

    question: Question
    source: Source = field(init=False)
    skeleton: PreTrainedModel = field(init=False)
    longest: int = field(init=False)  # tokens that the model can hold, with its observer
    footprints: dict[Form, Counter[str]] = field(init=False, default_factory=dict)
    tunings: dict[tuple[int, torch.dtype], Tuning] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.source = source_of(self.question.path)
        self.skeleton = skeleton_of(self.source)
        self.longest = context_of("model.path", self.source)
        observer = self.question.observer if self.question.fine_tune is None else None
        self.observer = None if observer is None else Plan(replace(self.question, path=observer, observer=None, draft=None))
        if self.observer is not None:
            self.longest = min(self.longest, self.observer.longest)
        self.draft = self._plan_of_draft()
        self.config = self.skeleton.config.get_text_config()
        path, what = self.question.path, self.source.own_precision
        if what is not None and self.question.quantize != "none":
            raise SetupError(f"model.quantize: {path} is {what}, whose weights keep their own precision; use none")
        if what is not None and self.question.fine_tune == "qlora":
            raise SetupError(f"{path} is {what}, whose weights are not rounded again; use lora, which dequantizes them")

    @cached_property
    def parameters(self) -> int:
        return int(self.skeleton.num_parameters())

    def need(self, kind: str, question: Question | None = None) -> Need:
        """What a device of this kind needs for the question, by default the plan's own. Raises `UnsupportedModel`."""
        asked = self.question if question is None else question
        if asked.fine_tune is not None:
            return self._to_tune(kind, asked)
        dtype = served_dtype(self.source, asked.dtype, asked.quantize, kind, self.parameters)
        weights = self._footprint(_form(asked.quantize, dtype, kind))
        context = self.context_of(asked)
        as_text = replace(asked, observer=None, draft=None, context=context, cache_tokens=None, cache_dtype="auto")
        observer = None if self.observer is None else self.observer.need(kind, as_text)
        draft = None if self.draft is None else self.draft.need(kind, self._asked_of_draft(asked))
        for name, other in (("observer", observer), ("draft", draft)):
            weights += Counter({} if other is None else {f"{name}, {form}": size for form, size in other.weights.items()})
        tokens_of_page, shapes = page_tokens(self.config, kind), self._attention.shapes.values()
        window, shrinks, cache = min(context, asked.text_window), asked.context is None, (asked.cache_tokens, asked.cache_dtype)
        limits = CacheLimits(asked.slots, context, asked.step_tokens, 1, tokens_of_page, *cache, asked.graphs, window, shrinks)
        slot = cache_bytes(shapes, limits.slot_tokens, limits.dtype_for(dtype), tokens_of_page)
        return Need(
            weights,
            slot=slot,
            slots=asked.slots,
            text=text_bytes(shapes, limits, dtype),
            activations=step_bytes(self.config, limits),
            overhead=_overhead(kind, asked),
            dtype=str(dtype).removeprefix("torch."),
            observer_text=0 if observer is None else observer.text,
            shared=None if asked.cache_tokens is None else limits.bytes_of(limits.pool_pages(0), slot),
            context=context,
            limits=limits,
            context_bytes=limits.bytes_of(limits.context_pages, slot),
            draft_cache=0 if draft is None else draft.cache,
        )

    def need_on(self, device: Device, question: Question | None = None) -> Need:
        """What the device needs: of a context that is not asked for, as much as it holds."""
        return self.need(device.kind, question).on(device.free)

    def context_of(self, asked: Question) -> int:
        """As the engine reduces it: to the model's own limit, and to the tokens of the cache; not to a device's memory."""
        return wanted_context(asked.context, self.longest, asked.cache_tokens)

    def _plan_of_draft(self) -> "Plan | None":
        path = self.question.draft if self.question.fine_tune is None else None
        return None if path is None else Plan(replace(self._asked_of_draft(self.question), path=path))

    def _asked_of_draft(self, asked: Question) -> Question:
        """Of a draft model, whose cache has fewer contexts. A GGUF file, say, keeps its own precision."""
        keeps = asked.draft is not None and source_of(asked.draft).own_precision is not None
        quantize = "none" if keeps else asked.quantize
        slots, context = min(asked.slots, MAX_LANES), min(self.context_of(asked), SLOT_TOKENS)
        cache: dict[str, Any] = {"slots": slots, "context": context, "cache_tokens": None, "cache_dtype": "auto", "text_window": 1}
        return replace(asked, quantize=quantize, observer=None, draft=None, **cache)

    def _to_tune(self, kind: str, asked: Question) -> Need:
        scheme = "nf4" if asked.fine_tune == "qlora" else "none"
        dtype = torch.bfloat16 if asked.dtype == "auto" else getattr(torch, asked.dtype)
        # its own layers, as only they have a backward pass: none is packed for the kernel
        weights = self._footprint(Form(scheme, dtype, "cuda", is_trained=True))
        tokens = min(self.longest, TUNED_TOKENS if asked.context is None else asked.context)
        tuning = self._tuning(tokens, dtype)
        return Need(weights, 0, 0, 0, tuning.activations, _overhead(kind, asked), str(dtype).removeprefix("torch."), tuning, context=tokens)

    def _tuning(self, tokens: int, dtype: torch.dtype) -> Tuning:
        if (tokens, dtype) not in self.tunings:
            skeleton: Any = deepcopy(self.skeleton)
            self.tunings[tokens, dtype] = tuning_of(skeleton.to(dtype), tokens)
        return self.tunings[tokens, dtype]

    def _footprint(self, form: Form) -> Counter[str]:
        if form not in self.footprints:
            self.footprints[form] = footprint(self.source, self.skeleton, form)
        return self.footprints[form].copy()

    @cached_property
    def _attention(self) -> SlotAttention:
        return slot_attention(deepcopy(self.skeleton))

    def fits(self, device: Device, question: Question | None = None) -> bool:
        asked = self.question if question is None else question
        return is_supported(asked, device.kind) and self.need(device.kind, asked).fits(device.free)


def is_supported(question: Question, kind: str) -> bool:
    """Whether a device of this kind runs the quantization, as `app.models.loading` checks it."""
    if question.fine_tune is not None:
        return True
    if kind == "cuda":
        return question.cache_dtype == "auto"
    return not (question.quantize != "none" and question.dtype == "float16")


def _form(quantize: str, dtype: torch.dtype, kind: str) -> Form:
    compiled = kernel() if kind == "cpu" and dtype == torch.bfloat16 else None
    return Form(quantize, dtype, kind, None if compiled is None else compiled.columns)


def _overhead(kind: str, question: Question) -> int:
    return CUDA_CONTEXT if kind == "cuda" else question.process
