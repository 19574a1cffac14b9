"""`python -m loadtest.studies.strategies`: compares decoding strategies by time and text; writes runs/strategies-*.jsonl.

Starts Litmus and requests answers of one length to fixed openings by POST /generate: each alone, in a random order in every repeat, then
all at once in one request. /v1/score returns how likely each text is to the model itself. Each repeat has a sampling seed of its own;
greedy, beam and contrastive search do not sample, so they give the same text in every repeat.
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

from loadtest.peers.servers import PORT_PLACEHOLDER, Peer, PeerFailed, running
from loadtest.process import manifest_facts, markdown_table
from loadtest.run import Run, create_run, report_progress

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
FULL_DEFAULTS = (("prompts", len(PROMPTS)), ("new_tokens", 96), ("repeats", 5))
QUICK_DEFAULTS = (("prompts", 2), ("new_tokens", 12), ("repeats", 1))
REQUEST_TIMEOUT_S = 300
NGRAM_WORDS = 4
COLUMNS = ("strategy", "s an answer", "tokens/s", "tokens/s, all at once", "repeated 4-grams", "distinct-1", "distinct-2", "log p a token")


def repeated_share(text: str) -> float:
    """Returns the share of 4-grams of words that occurred earlier in the text; 0 for a text without any."""
    ngrams = _ngrams(text, NGRAM_WORDS)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def distinct_share(text: str, count: int) -> float:
    """Returns distinct-n: the share of different n-grams of words among all (Li et al., arXiv 1510.03055); 0 for a text without any."""
    ngrams = _ngrams(text, count)
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(text: str, count: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + count]) for start in range(len(words) - count + 1)]


def request_body(strategy: str, prompts: Sequence[str], tokens: int, seed: int) -> dict[str, Any]:
    """Returns the body of a request. Every answer has exactly `tokens` tokens, so that times are comparable."""
    sampling = {"seed": seed} if STRATEGIES[strategy].get("do_sample") else {}
    return {"prompt": list(prompts), "min_length": tokens, "max_length": tokens, **STRATEGIES[strategy], **sampling}


def generate(http: httpx.Client, body: dict[str, Any]) -> tuple[list[str], float]:
    """Requests answers; returns them, and the duration in seconds. Raises `PeerFailed`."""
    begin_s = time.perf_counter()
    response = http.post("/generate", json=body)
    seconds = time.perf_counter() - begin_s
    texts = json_of(response)["gen_text"]
    if len(texts) != len(body["prompt"]):
        raise PeerFailed(f"/generate returned {len(texts)} answers to {len(body['prompt'])} prompts")
    return texts, seconds


def mean_logprob(http: httpx.Client, prompt: str, text: str) -> float | None:
    """Returns the mean log-probability of the tokens of `text` after `prompt`, in nats; None if there are none. Raises `PeerFailed`."""
    body = {"text": prompt + text, "granularity": "token", "calibration": "none", "methods": ["perplexity"]}
    (score,) = json_of(http.post("/v1/score", json=body))["data"]
    if score["object"] != "score":
        raise PeerFailed(f"a text was not scored: {score['message']}")
    logprobs = [token["logprob"] for token in score["tokens"] if token["end"] > len(prompt)]
    return statistics.fmean(logprobs) if logprobs else None


def json_of(response: httpx.Response) -> dict[str, Any]:
    """Raises `PeerFailed` for a status other than 200."""
    if response.status_code != httpx.codes.OK:
        raise PeerFailed(f"{response.request.url.path} answered {response.status_code}: {response.text[:300]}")
    return response.json()


def measure_alone(http: httpx.Client, args: argparse.Namespace, repeat: int) -> Iterator[dict[str, Any]]:
    """Measures each strategy with each prompt alone, in random order."""
    prompts = PROMPTS[: args.prompts]
    cells = [(strategy, prompt) for strategy in STRATEGIES for prompt in prompts]
    for strategy, prompt in random.Random(f"{args.seed}/{repeat}").sample(cells, len(cells)):
        (text,), seconds = generate(http, request_body(strategy, [prompt], args.new_tokens, args.seed + repeat))
        row = {"kind": "answer", "strategy": strategy, "repeat": repeat, "opening": PROMPTS.index(prompt), "prompt": prompt, "text": text}
        yield {**row, **_speed_fields(1, args.new_tokens, seconds), **_text_fields(text), "mean_logprob": mean_logprob(http, prompt, text)}


def measure_at_once(http: httpx.Client, args: argparse.Namespace, repeat: int) -> Iterator[dict[str, Any]]:
    """Measures each strategy with all prompts in one request: the throughput that it leaves to many clients."""
    prompts = PROMPTS[: args.prompts]
    for strategy in random.Random(f"{args.seed}/{repeat}/all").sample(list(STRATEGIES), len(STRATEGIES)):
        _, seconds = generate(http, request_body(strategy, prompts, args.new_tokens, args.seed + repeat))
        yield {"kind": "crowd", "strategy": strategy, "repeat": repeat, **_speed_fields(len(prompts), args.new_tokens, seconds)}


def _speed_fields(count: int, tokens: int, seconds: float) -> dict[str, Any]:
    return {"at_once": count, "tokens": count * tokens, "seconds": seconds, "tokens_per_s": count * tokens / seconds}


def _text_fields(text: str) -> dict[str, float]:
    return {"repeated_4grams": repeated_share(text), "distinct_1": distinct_share(text, 1), "distinct_2": distinct_share(text, 2)}


def measure(http: httpx.Client, args: argparse.Namespace, run: Run) -> list[dict[str, Any]]:
    rows = []
    list(measure_at_once(http, args, 0))  # not counted: warms the server up
    for repeat in range(1, args.repeats + 1):
        report_progress(f"repeat {repeat} of {args.repeats} ...")
        for measure_part in (measure_alone, measure_at_once):
            for row in measure_part(http, args, repeat):
                run.note(row)
                rows.append(row)
    return rows


def litmus_for_beams(args: argparse.Namespace) -> Peer:
    """Returns Litmus with a slot for every beam of every prompt."""
    beams = max(max(options.get("num_beams", 1), options.get("top_k", 0)) for options in STRATEGIES.values())
    options = {
        "--model.path": args.model,
        "--model.quantize": args.quantize,
        "--model.device": args.device,
        "--model.slots": str(beams * args.prompts),
        "--ui.enabled": "false",
        "--server.log_level": "warning",
        "--server.port": PORT_PLACEHOLDER,
    }
    return Peer("strategies", (sys.executable, "-m", "serve", *(arg for option in options.items() for arg in option)), "/ready")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats medians of times, and means of the measures of texts, as Markdown."""
    lines = []
    for strategy in STRATEGIES:
        strategy_rows = [row for row in rows if row["strategy"] == strategy]
        answers = [row for row in strategy_rows if row["kind"] == "answer"]
        at_once = statistics.median(row["tokens_per_s"] for row in strategy_rows if row["kind"] == "crowd")
        times = [statistics.median(row[name] for row in answers) for name in ("seconds", "tokens_per_s")]
        names = ("repeated_4grams", "distinct_1", "distinct_2", "mean_logprob")
        means = [statistics.fmean([row[name] for row in answers if row[name] is not None]) for name in names]
        lines.append([strategy, f"{times[0]:.3f}", f"{times[1]:,.0f}", f"{at_once:,.0f}", *(f"{mean:.2f}" for mean in means)])
    return markdown_table(COLUMNS, lines)


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.studies.strategies", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp4", "int4"], default="none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, choices=range(1, len(PROMPTS) + 1), metavar="N", help="number of openings; default all")
    parser.add_argument("--new-tokens", type=int, help="of an answer; default 96")
    parser.add_argument("--repeats", type=int, help="default 5")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order; plus the number of the repeat, of the sampling")
    parser.add_argument("--quick", action="store_true", help="a short run that shows whether everything works; not a measurement")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    for name, value in QUICK_DEFAULTS if args.quick else FULL_DEFAULTS:
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with running(litmus_for_beams(args), args.out) as server, httpx.Client(base_url=server.url, timeout=REQUEST_TIMEOUT_S) as http:
            card = json_of(http.get("/v1/models"))["data"][0]
            run = create_run(args.out, "strategies", {**manifest_facts("loadtest.studies.strategies", args, argv), "model": card})
            markdown = table(measure(http, args, run))
            run.close()
    except (PeerFailed, httpx.TransportError) as error:
        report_progress(f"{type(error).__name__}: {error}")
        return 1
    sys.stdout.write(f"{markdown}\n\n{'Quick run: not a measurement. ' if args.quick else ''}Every answer is in {run.path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
