"""The engine as it attends on CUDA, by torch's flash kernel over pages, against transformers' `generate` and by its own other way."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from driving import answers_of, drain, random_prompt
from flash import FlashKernel, use_flash
from tinymodels import VOCABULARY, letters, tiny

from app.engine import varlen
from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta, Scored
from app.engine.request import BeamSearchParams, Generate, SamplingParams, Score
from app.engine.varlen import PAGE_TOKENS
from app.scoring.windows import windows

LONG = 640  # tokens: three pages
NEW = 6
GREEDY = SamplingParams(temperature=0.0)


def create(name: str, slots: int = 3) -> Engine:
    model = tiny(name)
    model.config.max_position_embeddings = LONG
    flat = create_flat_model(model, CacheLimits(slots, LONG, page_tokens=PAGE_TOKENS))
    return Engine(flat, letters, frozenset(), EngineLimits(slots, LONG, 96))


def generated(name: str, prompt: tuple[int, ...], **options: int) -> str:
    row = torch.tensor([prompt])
    out = tiny(name).generate(row, attention_mask=torch.ones_like(row), max_new_tokens=NEW, do_sample=False, eos_token_id=None, **options)
    return letters(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("has_page_table", [True, False], ids=["pages by a table", "without one"])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPTNeoX", "Lfm2"])
def test_answers_and_scores_over_several_pages(name: str, has_page_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    by_torch, kernel = create(name), use_flash(monkeypatch, has_page_table)
    engine = create(name)
    assert engine.performer.attention.is_flash and kernel.calls > 0
    first = tuple(rng.randrange(VOCABULARY) for _ in range(530))
    prompts = [first, random_prompt(rng), first[:300] + (7,), random_prompt(rng), first[:257]]
    texts = [random_prompt(rng, 300) for _ in prompts]
    events = []
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        engine.submit(Generate(str(index), prompt, NEW, GREEDY))
        events += engine.step()
        for each in (engine, by_torch):
            each.submit(Score(f"s{index}", text, windows(len(text), LONG)))
        events += engine.step()
    for index, text in enumerate(texts):  # several that take more than one step, and follow each other within one
        for each in (engine, by_torch):
            each.submit(Score(f"at-once-{index}", text, windows(len(text), LONG)))
    events += drain(engine)
    assert answers_of(events) == {str(index): generated(name, prompt) for index, prompt in enumerate(prompts)}
    cached = {event.id: event.cached for event in events if isinstance(event, Delta) and event.cached}
    assert cached == {"2": 300, "4": 256}
    expected, found = (
        {event.id: event.columns.logprob for event in each if isinstance(event, Scored)} for each in (drain(by_torch), events)
    )
    assert found.keys() == expected.keys()
    assert all(found[id] == pytest.approx(expected[id], abs=2e-3) for id in expected)


def test_a_beam_search_copies_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    use_flash(monkeypatch)
    engine, prompt = create("Llama"), random_prompt(random.Random(8), 260)
    engine.submit(Generate("beams", prompt, NEW, GREEDY, search=BeamSearchParams(3)))
    assert answers_of(drain(engine))["beams"] == generated("Llama", prompt, num_beams=3)


@pytest.mark.parametrize("has_page_table", [True, False])
def test_the_probe_notices_a_kernel_that_is_wrong(has_page_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = use_flash(monkeypatch, has_page_table)
    asked = torch.device("cpu"), torch.float32, 2, 16, 4 if has_page_table else 1
    assert varlen.probe(*asked) < 1e-5
    assert varlen.probe(*asked, has_sinks=True) < 1e-5

    def ignores_lengths(*args: object, seqused_k: torch.Tensor, **options: object) -> tuple[torch.Tensor, ...]:
        return kernel(*args, seqused_k=(seqused_k + 1).clamp(max=PAGE_TOKENS), **options)

    monkeypatch.setattr(varlen, "flash_kernel", ignores_lengths)
    assert varlen.probe(*asked) > varlen.MAX_PROBE_ERROR

    def has_another_sum(*args: object, **options: object) -> tuple[torch.Tensor, ...]:
        out, lse, *rest = kernel(*args, **options)
        return out, lse * 1.4427, *rest  # in powers of two

    monkeypatch.setattr(varlen, "flash_kernel", has_another_sum)
    assert varlen.probe(*asked, has_sinks=True) > varlen.MAX_PROBE_ERROR


class Faulty:
    """The kernel, with a fault in what it does with the keys of a row in parts."""

    def __init__(self, kernel: FlashKernel, fault: str) -> None:
        self._kernel, self._fault = kernel, fault

    def __call__(self, query: torch.Tensor, *args: Any, num_splits: int = 1, **options: Any) -> tuple[torch.Tensor, ...]:
        if num_splits > 1 and self._fault == "refuses":
            raise RuntimeError("num_splits > 1 is not supported for varlen paged KV")
        if num_splits > 1 and self._fault == "loses the later parts":
            used = options["seqused_k"]
            options["seqused_k"] = used.minimum(torch.full_like(used, PAGE_TOKENS))
        out, *rest = self._kernel(query, *args, num_splits=num_splits, **options)
        if num_splits > 1 and self._fault == "writes the first row only":
            out[1:] = 0
        return out, *rest


@pytest.mark.parametrize("fault", ["refuses", "loses the later parts", "writes the first row only"])
def test_keys_are_not_divided_where_that_is_wrong(fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(varlen, "probe", partial(on_a_cpu, varlen.probe))
    usable, card = varlen.usable_splits, torch.device("cuda")
    kernel = use_flash(monkeypatch)
    shapes = [(2, 16, 16), (1, 32, 32)]
    assert (
        usable(card, torch.bfloat16, shapes, 900, ()) == 1 and usable(card, torch.bfloat16, shapes, 4096, ()) == 4 and not caplog.messages
    )
    assert usable(card, torch.bfloat16, shapes, 131072, ()) == 16 == usable(card, torch.bfloat16, shapes, 131072, {"sinks"})
    assert usable(card, torch.bfloat16, shapes, 4096, {"cap"}) == 0
    monkeypatch.setattr(varlen, "flash_kernel", Faulty(kernel, fault))
    assert usable(card, torch.bfloat16, shapes, 4096, ()) == 1
    assert "with the keys of a row in 4 parts," in caplog.messages[0] and "is not used" in caplog.messages[0]


def test_without_a_page_table_no_keys_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(varlen, "probe", partial(on_a_cpu, varlen.probe))
    usable = varlen.usable_splits
    use_flash(monkeypatch, has_page_table=False)
    assert usable(torch.device("cuda"), torch.float16, [(2, 16, 16)], 4096, ()) == 1
    assert (
        usable(torch.device("cuda"), torch.float32, [(2, 16, 16)], 4096, ())
        == 0
        == usable(torch.device("cpu"), torch.bfloat16, [], 4096, ())
    )


def test_no_call_has_more_sequences_than_the_kernel_can_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    use_flash(monkeypatch, has_page_table=False)
    monkeypatch.setattr(varlen, "MOST_SEQUENCES", 7)  # one sequence of four pages, where the probe has three
    assert varlen.probe(torch.device("cpu"), torch.float32, 2, 16) < 1e-5


def on_a_cpu(probe: Callable[..., float], device: torch.device, *args: Any) -> float:
    return probe(torch.device("cpu"), *args)
