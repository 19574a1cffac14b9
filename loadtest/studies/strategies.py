"""`python -m loadtest.studies.strategies`: ways to decode compared, time and text, as runs/strategies-*.jsonl.

Starts Litmus's own server and asks POST /generate for answers of one length to fixed openings: each by itself, in an order of its own for
every repeat, then all at once in one request. /v1/score says how likely the model itself finds each text. The server makes every answer
of one repeat with the seed of its number; of greedy, beam and contrastive search every repeat is the same text.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from loadtest.peers.servers import PORT, Peer, PeerFailed, running
from loadtest.process import facts, markdown
from loadtest.run import Run, create_run, tell

MODEL = "models/storyteller"
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling, T=1": {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "sampling, T=0.7, top_p=0.9": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0},
    "beam search, 4 beams": {"num_beams": 4},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
}
PROMPTS = (
    "Once upon a time there was a king who",
    "The old sailor lit his pipe and",
    "When the children came to the wood,",
    'The door opened, and a voice said, "',
    "It was a cold morning in November, and",
    "The fox looked at the crow and",
    "In a little house by the river",
    "My uncle had never told anyone that",
)
DEFAULTS = (("prompts", len(PROMPTS)), ("new_tokens", 96), ("repeats", 5))
QUICK = (("prompts", 2), ("new_tokens", 12), ("repeats", 1))
LIMIT_S = 300
GRAM = 4  # words
HEAD = ("strategy", "s an answer", "tokens/s", "tokens/s, all at once", "repeated 4-grams", "distinct-1", "distinct-2", "log p a token")


def repeated(text: str) -> float:
    """Share of runs of four words that stood there before; 0 where there is none."""
    found = _grams(text, GRAM)
    return 1 - len(set(found)) / len(found) if found else 0.0


def distinct(text: str, count: int) -> float:
    """Different runs of so many words, as a share of all (Li et al., arXiv 1510.03055); 0 where there is none."""
    found = _grams(text, count)
    return len(set(found)) / len(found) if found else 0.0


def _grams(text: str, count: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[at : at + count]) for at in range(len(words) - count + 1)]


def body(strategy: str, prompts: Sequence[str], tokens: int, seed: int) -> dict[str, Any]:
    """An answer ends at `tokens`, not before and not later: time is compared at equal lengths."""
    drawn = {"seed": seed} if STRATEGIES[strategy].get("do_sample") else {}
    return {"prompt": list(prompts), "min_length": tokens, "max_length": tokens, **STRATEGIES[strategy], **drawn}


def generate(http: httpx.Client, asked: dict[str, Any]) -> tuple[list[str], float]:
    """The answers, and the seconds they took. Raises `PeerFailed`."""
    begin_s = time.perf_counter()
    answer = http.post("/generate", json=asked)
    seconds = time.perf_counter() - begin_s
    texts = checked(answer)["gen_text"]
    if len(texts) != len(asked["prompt"]):
        raise PeerFailed(f"{len(texts)} answers came to {len(asked['prompt'])} prompts")
    return texts, seconds


def mean_logprob(http: httpx.Client, prompt: str, text: str) -> float | None:
    """Of the tokens of `text` behind `prompt`, as the model itself finds them; None where there are none. Raises `PeerFailed`."""
    asked = {"text": prompt + text, "granularity": "token", "calibration": "none", "methods": ["perplexity"]}
    (score,) = checked(http.post("/v1/score", json=asked))["data"]
    if score["object"] != "score":
        raise PeerFailed(f"a text was not scored: {score['message']}")
    found = [token["logprob"] for token in score["tokens"] if token["end"] > len(prompt)]
    return statistics.fmean(found) if found else None


def checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code != httpx.codes.OK:
        raise PeerFailed(f"{answer.request.url.path} answered {answer.status_code}: {answer.text[:300]}")
    return answer.json()


def alone(http: httpx.Client, given: argparse.Namespace, repeat: int) -> Iterator[dict[str, Any]]:
    """An answer to each prompt by each strategy, in random order."""
    prompts = PROMPTS[: given.prompts]
    cells = [(strategy, prompt) for strategy in STRATEGIES for prompt in prompts]
    for strategy, prompt in random.Random(f"{given.seed}/{repeat}").sample(cells, len(cells)):
        (text,), seconds = generate(http, body(strategy, [prompt], given.new_tokens, given.seed + repeat))
        row = {"kind": "answer", "strategy": strategy, "repeat": repeat, "opening": PROMPTS.index(prompt), "prompt": prompt, "text": text}
        yield {**row, **_speed(1, given.new_tokens, seconds), **_measures(text), "mean_logprob": mean_logprob(http, prompt, text)}


def together(http: httpx.Client, given: argparse.Namespace, repeat: int) -> Iterator[dict[str, Any]]:
    """All prompts in one request: what a strategy leaves of the server for others."""
    prompts = PROMPTS[: given.prompts]
    for strategy in random.Random(f"{given.seed}/{repeat}/all").sample(list(STRATEGIES), len(STRATEGIES)):
        _, seconds = generate(http, body(strategy, prompts, given.new_tokens, given.seed + repeat))
        yield {"kind": "crowd", "strategy": strategy, "repeat": repeat, **_speed(len(prompts), given.new_tokens, seconds)}


def _speed(count: int, tokens: int, seconds: float) -> dict[str, Any]:
    return {"at_once": count, "tokens": count * tokens, "seconds": seconds, "tokens_per_s": count * tokens / seconds}


def _measures(text: str) -> dict[str, float]:
    return {"repeated_4grams": repeated(text), "distinct_1": distinct(text, 1), "distinct_2": distinct(text, 2)}


def measure(http: httpx.Client, given: argparse.Namespace, run: Run) -> list[dict[str, Any]]:
    rows = []
    list(together(http, given, 0))  # not counted
    for repeat in range(1, given.repeats + 1):
        tell(f"repeat {repeat} of {given.repeats} ...")
        for part in (alone, together):
            for row in part(http, given, repeat):
                run.note(row)
                rows.append(row)
    return rows


def server(given: argparse.Namespace) -> Peer:
    """With a slot for every beam of every prompt."""
    most = max(max(options.get("num_beams", 1), options.get("top_k", 0)) for options in STRATEGIES.values())
    options = {
        "--model.path": given.model,
        "--model.quantize": given.quantize,
        "--model.device": given.device,
        "--model.slots": str(most * given.prompts),
        "--ui.enabled": "false",
        "--server.log_level": "warning",
        "--server.port": PORT,
    }
    return Peer("strategies", (sys.executable, "-m", "serve", *(word for option in options.items() for word in option)), "/ready")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians of times, means of what is said of the texts."""
    lines = []
    for strategy in STRATEGIES:
        own = [row for row in rows if row["strategy"] == strategy]
        answers = [row for row in own if row["kind"] == "answer"]
        crowd = statistics.median(row["tokens_per_s"] for row in own if row["kind"] == "crowd")
        times = [statistics.median(row[name] for row in answers) for name in ("seconds", "tokens_per_s")]
        names = ("repeated_4grams", "distinct_1", "distinct_2", "mean_logprob")
        means = [statistics.fmean([row[name] for row in answers if row[name] is not None]) for name in names]
        lines.append([strategy, f"{times[0]:.3f}", f"{times[1]:,.0f}", f"{crowd:,.0f}", *(f"{mean:.2f}" for mean in means)])
    return markdown(HEAD, lines)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.strategies", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp4", "int4"], default="none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, choices=range(1, len(PROMPTS) + 1), metavar="N", help=f"openings; {len(PROMPTS)}")
    parser.add_argument("--new-tokens", type=int, help="of an answer; 96")
    parser.add_argument("--repeats", type=int, help="5")
    parser.add_argument("--seed", type=int, default=0, help="of the order, and with the repeat's number of the draws")
    parser.add_argument("--quick", action="store_true", help="so little that it shows whether all runs, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args(words)
    for name, value in QUICK if given.quick else DEFAULTS:
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        with running(server(given), given.out) as served, httpx.Client(base_url=served.url, timeout=LIMIT_S) as http:
            card = checked(http.get("/v1/models"))["data"][0]
            run = create_run(given.out, "strategies", {**facts("loadtest.studies.strategies", given, words), "model": card})
            shown = table(measure(http, given, run))
            run.close()
    except (PeerFailed, httpx.TransportError) as error:
        tell(f"{type(error).__name__}: {error}")
        return 1
    sys.stdout.write(f"{shown}\n\n{'Quick: no measurement. ' if given.quick else ''}Each answer: {run.path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
