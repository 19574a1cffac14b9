"""`python -m app.estimate MODEL --quantize nf4 --context 8192 --slots 16`: what it takes, where it fits, and what to change if it does not.

Reads a config or a GGUF header, no weights. The exit code is 0 if it fits this machine or one of the cards, 1 if it fits none, 2 if the
question cannot be answered.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from app.errors import LitmusError
from app.schemas.estimate import EstimateRequest
from app.scoring.commands import LEAST_TOKENS, at_least
from app.settings import ModelSettings, prepare_environment

SLOTS: int = EstimateRequest.model_fields["slots"].default


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.estimate", description="memory that a model takes, from its config alone")
    parser.add_argument("model", help="folder, GGUF file or hub name, as model.path")
    parser.add_argument("--observer", help="a second model for binoculars; the bundled model brings its own along")
    parser.add_argument("--draft", help="a smaller model that proposes tokens, as model.draft")
    parser.add_argument("--quantize", choices=["none", "int8", "nf4", "fp4", "int4"], default="none")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    longest = "the model's own, or as much as fits, when not given"
    tuned = "when fine-tuning, tokens of a sequence, at most 4,096 when not given"
    parser.add_argument("--context", type=at_least(LEAST_TOKENS), help=f"as model.context: {longest}; {tuned}")
    parser.add_argument("--text-window", type=at_least(LEAST_TOKENS), default=4096, help="as model.text_window")
    parser.add_argument("--slots", type=at_least(1), help=f"requests that decode at once; {SLOTS} when not given")
    parser.add_argument("--cache-tokens", type=at_least(LEAST_TOKENS), help="as model.cache_tokens: what all slots share")
    parser.add_argument("--cache-dtype", choices=["auto", "int8"], default="auto", help="as model.cache_dtype")
    parser.add_argument("--no-graphs", action="store_true", help="as model.graphs: false, on CUDA")
    parser.add_argument("--step-tokens", type=at_least(16), default=512, help="as model.step_tokens")
    parser.add_argument("--fine-tune", choices=["lora", "qlora"], help="what fine-tuning takes, instead of serving")
    parser.add_argument("--card", action="append", default=[], metavar="24GB", help="another card to ask about; may be given several times")
    parser.add_argument("--json", action="store_true", help="print the answer of /admin/estimate")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    # here: they import torch, whose memory is part of the answer
    from app.engine.ledger import MAX_DEFAULT_SLOTS, MAX_DEFAULT_SLOTS_ON_CUDA
    from app.estimate.device import card, machine
    from app.estimate.plan import Plan, Question
    from app.estimate.process import process_bytes
    from app.estimate.report import estimate_of, lines

    try:
        settings = ModelSettings(path=args.model, observer=args.observer, draft=args.draft)
        settings.check_paths()
        devices = [*machine(), *map(card, args.card)]
        sizes = (args.context, SLOTS if args.slots is None else args.slots, args.step_tokens)
        process, observer = process_bytes(settings.path, args.quantize), settings.observer_path
        cache = (args.cache_tokens, args.cache_dtype)
        question = Question(settings.path, args.quantize, args.dtype, *sizes, args.fine_tune, process, observer, *cache, args.draft)
        question = replace(question, graphs=not args.no_graphs, text_window=args.text_window)
        estimate = estimate_of(Plan(question), devices)
    except LitmusError as error:
        sys.stderr.write(f"litmus: {error.message}\n")
        return 2
    if args.context is not None and estimate.context is not None and estimate.context < args.context:
        holder = "--cache-tokens" if estimate.context == args.cache_tokens else "the model"
        sys.stderr.write(f"--context {args.context}: {holder} holds {estimate.context} tokens, so the answer is for {estimate.context}\n")
    sys.stdout.write(estimate.model_dump_json() + "\n" if args.json else "\n".join(lines(estimate)) + "\n")
    if args.slots is None and args.fine_tune is None and not args.json:
        most = f"at most {MAX_DEFAULT_SLOTS}, or {MAX_DEFAULT_SLOTS_ON_CUDA} on CUDA"
        sys.stdout.write(f"{SLOTS} slots are assumed; a server that is told none takes as many as fit, {most}\n")
    return 0 if any(device.fits for device in estimate.devices) else 1


if __name__ == "__main__":
    prepare_environment()
    sys.exit(main(sys.argv[1:]))
