"""Gated delta nets: states in pages of the cache, by the kernel and by torch, against transformers' own forward and `generate`."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from driving import answers_of, drain, kernel_or_skip
from tinymodels import VOCABULARY, letters, tiny

from app.engine import deltanet
from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.deltanet import PAGE_TOKENS, DeltaInputs, DeltaShape, recur
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Delta, Event, Scored
from app.engine.kernel import Kernel
from app.engine.layout import Layout, Span, layout_of
from app.engine.pages import PageCopy
from app.engine.request import Generate, SamplingParams, Score
from app.errors import SetupError
from app.models.cache import page_tokens
from app.models.loading import create_engine
from app.scoring.windows import windows
from app.settings import ModelSettings

LONG = 2 * PAGE_TOKENS + 176
NEW = 6
GREEDY = SamplingParams(temperature=0.0)
CPU = torch.device("cpu")


def generated(prompt: tuple[int, ...]) -> str:
    row = torch.tensor([prompt])
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    out: torch.Tensor = tiny("Qwen3.5").generate(row, attention_mask=torch.ones_like(row), **options)  # type: ignore[operator]
    return letters(out[0, len(prompt) :].tolist())


def create(by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> Engine:
    if by_kernel:
        kernel_or_skip()
    else:
        monkeypatch.setattr(deltanet, "kernel", lambda: None)
    model = tiny("Qwen3.5")
    model.config.max_position_embeddings = LONG
    flat = create_flat_model(model, CacheLimits(3, LONG))
    assert flat.has_states and flat.page_tokens == PAGE_TOKENS
    return Engine(flat, letters, frozenset(), EngineLimits(3, LONG, 300, drafts=False))


@pytest.mark.parametrize("by_kernel", [True, False])
def test_answers_go_on_from_states_that_are_found(by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rng = create(by_kernel, monkeypatch), random.Random(3)
    first = tuple(rng.randrange(VOCABULARY) for _ in range(PAGE_TOKENS - 3))  # the answer crosses the end of a page

    def ask(id: str, prompt: tuple[int, ...]) -> list[Event]:
        engine.submit(Generate(id, prompt, NEW, GREEDY))
        return drain(engine)

    answer = tuple(ord(letter) - 0x4E00 for letter in generated(first))
    longer = (*first, *answer, *(rng.randrange(VOCABULARY) for _ in range(PAGE_TOKENS)))
    events = ask("first", first) + ask("again", first) + ask("longer", longer) + ask("branch", (*longer[: PAGE_TOKENS + 200], 7))
    prompts = {"first": first, "again": first, "longer": longer, "branch": (*longer[: PAGE_TOKENS + 200], 7)}
    for id, prompt in prompts.items():
        engine.submit(Generate(f"{id} beside", prompt, NEW, GREEDY))
    events += drain(engine)
    told = answers_of(events)
    assert told == {f"{id}{where}": generated(prompt) for id, prompt in prompts.items() for where in ("", " beside")}
    cached = {event.id: event.cached for event in events if isinstance(event, Delta) and event.cached and "beside" not in event.id}
    found = len(first) + NEW - 1  # the last token of an answer is not run
    assert cached == {"longer": found, "branch": PAGE_TOKENS}, "nothing is set back: the same prompt again finds no full page"


def test_texts_in_several_steps_have_the_statistics_of_the_models_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, rng, reference = create(True, monkeypatch), random.Random(4), tiny("Qwen3.5")
    texts = [tuple(rng.randrange(VOCABULARY) for _ in range(length)) for length in (PAGE_TOKENS + 90, 40, 310, 700, 20)]
    for index, text in enumerate(texts):
        engine.submit(Generate(f"answer {index}", text[:30], 20, GREEDY))
        engine.submit(Score(str(index), text, windows(len(text), LONG)))
    scored = {event.id: event.columns.logprob for event in drain(engine) if isinstance(event, Scored)}
    for index, text in enumerate(texts):
        with torch.inference_mode():
            logprobs = reference(torch.tensor([text]), use_cache=False).logits[0].log_softmax(-1)
        expected = logprobs[:-1].gather(1, torch.tensor(text[1:])[:, None])[:, 0]
        assert scored[str(index)] == pytest.approx(expected.tolist(), abs=2e-3)


def inputs_of(rows: int, shape: DeltaShape) -> DeltaInputs:
    generator = torch.Generator().manual_seed(rows)
    mixed, decay, rate = (torch.randn(rows, width, generator=generator) for width in (shape.channels, shape.heads, shape.heads))
    return DeltaInputs(mixed, decay, rate, torch.rand(shape.heads, generator=generator), torch.randn(shape.heads, generator=generator))


@pytest.mark.parametrize("heads", [(2, 6), (4, 4)])
def test_the_kernel_computes_what_torch_does(built: Kernel, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding rows, of which two are of one sequence; a prompt that ends in another page; texts with and without pages."""
    shape = DeltaShape(*heads, key_dim=16, value_dim=32, taps=4)
    weight, numbers = torch.randn(4, shape.channels), PAGE_TOKENS * shape.token_floats
    spans = [Span(4, 30, PAGE_TOKENS - 10, (3, 4)), Span(30, 37, 20, (0,), True), Span(37, 40, 0, (0,), True), Span(40, 50, 0, None)]
    layout: Layout = layout_of([((0,), 5), ((0,), 6), ((1, 2), PAGE_TOKENS), ((5,), 0)], spans, PAGE_TOKENS, CPU)
    results = []
    for native in (built, None):
        monkeypatch.setattr(deltanet, "kernel", lambda native=native: native)
        caches = torch.randn(6, numbers, generator=torch.Generator().manual_seed(1)), torch.randn(1, numbers)
        torch.nn.init.ones_(caches[1])
        results.append((recur(inputs_of(50, shape), shape, weight, layout, caches), *caches))
    for mine, by_torch in zip(*results, strict=True):
        assert torch.allclose(mine, by_torch, rtol=1e-4, atol=1e-4 * float(by_torch.abs().max()))
    used = slice(shape.size + 3 * shape.channels)
    untouched = torch.randn(6, numbers, generator=torch.Generator().manual_seed(1))
    changed = [page for page in range(6) if not torch.equal(results[0][1][page, used], untouched[page, used])]
    assert changed == [0, 2, 3, 4, 5], "page 1 is only read"


def test_a_copied_page_has_its_state() -> None:
    flat = create_flat_model(tiny("Qwen3.5"), CacheLimits(2, 64))
    states = flat.attention.slots.states_of(0)
    assert states is not None
    states[0] = torch.arange(states.shape[1])
    flat.copy([PageCopy(0, 1, 3)])
    assert torch.equal(states[1], states[0])


def test_a_cache_in_8_bits_is_refused() -> None:
    with pytest.raises(SetupError, match="has layers of other kinds"):
        create_flat_model(tiny("Qwen3.5").bfloat16(), replace(CacheLimits(2, 64), dtype="int8"))


def test_pages_are_large_where_they_hold_states() -> None:
    assert page_tokens(tiny("Qwen3.5").config, "cpu") == PAGE_TOKENS and page_tokens(tiny("Llama").config, "cpu") == 64


def test_nothing_is_drafted(tiny_folder: Path, tmp_path: Path) -> None:
    tiny("Qwen3.5").save_pretrained(tmp_path)
    for file in [*tiny_folder.glob("token*"), *tiny_folder.glob("chat_template*")]:
        shutil.copy(file, tmp_path)
    settings = ModelSettings(path=str(tmp_path), slots=1, device="cpu")
    engine, _ = create_engine(settings)
    assert engine.performer.has_states and not engine.drafter.is_on
    for path, draft in ((tmp_path, tiny_folder), (tiny_folder, tmp_path)):
        with pytest.raises(SetupError, match=f"model.draft: {tmp_path} keeps a state of all tokens"):
            create_engine(ModelSettings(path=str(path), draft=str(draft), slots=1, device="cpu"))
