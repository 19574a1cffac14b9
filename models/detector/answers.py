"""Answers of the default model to 20 ordinary requests, each sampled in four ways, as JSON lines for `models.detector.served`.

python -m models.detector.answers --out runs/answers.jsonl
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.engine.engine import Engine
from app.engine.events import Delta, Failed
from app.engine.request import Generate, SamplingParams
from app.errors import LitmusError
from app.models.loading import create_engine
from app.tokenizer import Tokenizer
from models.detector.default import settings_of

PROMPTS = Path(__file__).with_name("prompts.txt")
SAMPLING = {
    "T=1": SamplingParams(temperature=1.0),
    "T=0.8": SamplingParams(temperature=0.8),
    "T=0.8, top_p=0.95": SamplingParams(temperature=0.8, top_p=0.95),
    "T=0": SamplingParams(temperature=0.0),
}
MIN_TOKENS, MAX_TOKENS = 110, 260


def requests(tokenizer: Tokenizer) -> Iterator[tuple[str, Generate]]:
    """Each with its kind of sampling."""
    for kind, sampling in SAMPLING.items():
        for number, prompt in enumerate(PROMPTS.read_text().splitlines()):
            id = f"{kind}/{number}"
            tokens = tokenizer.encode_chat([{"role": "user", "content": prompt}])
            params = SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, seed=random.Random(id).getrandbits(62), min_tokens=MIN_TOKENS
            )
            yield kind, Generate(id, tokens, MAX_TOKENS, params)


def answer(engine: Engine, job: Generate) -> str:
    """Raises the error of an answer that fails."""
    engine.submit(job)
    text = ""
    while True:
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Delta):
                text += event.text
                if event.finish:
                    return text.strip()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.detector.answers", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="another GGUF file or folder of the same weights")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        settings = settings_of(args.model)
        engine, _ = create_engine(settings)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", encoding="utf-8") as file:
            for kind, job in requests(Tokenizer(settings.path)):
                file.write(json.dumps({"text": answer(engine, job), "domain": f"own answers, {kind}", "machine": True}) + "\n")
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
