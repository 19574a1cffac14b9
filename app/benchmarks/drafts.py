"""`python -m app.benchmarks.drafts`: tokens per second with drafts and without, in turns of one engine, as JSON lines on stdout.

The tokens of both have to be the same, or it ends with an error. Four kinds of answers:

    copy    the prompt's text once more; what SmolLM2-135M-Instruct does at temperature 0 when asked for a change of one word
    table   a table of the prompt as JSON, held to its form by a schema, at temperature 0
    form    JSON with eight long keys and short values, sampled
    prose   stories, sampled: they repeat nothing

With `--draft` the drafts of a draft model are compared: the others are made both times. Decoding alone is measured, from the first token of
the last answer on. Knows no servers.
"""

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.benchmarks.engine import BenchFailed, print_json_lines
from app.engine.engine import Engine
from app.engine.events import Delta, Failed
from app.engine.request import Generate, SamplingParams
from app.forms.grammar import json_grammar
from app.models.loading import create_engine
from app.settings import ModelSettings
from app.tokenizer import Tokenizer

NAMES = ("Anna Berger", "Carlos Diaz", "Mei Lin", "Omar Haddad", "Julia Novak", "Peter Olsen", "Ravi Patel", "Sofia Rossi")
CITIES = ("Vienna", "Lisbon", "Taipei", "Cairo", "Prague", "Oslo", "Mumbai", "Milan")
SUBJECTS = ("a river", "an old clock", "the first snow", "a lost dog", "the moon", "a train ride", "a garden", "a storm")
HEROES = ("keeper", "miller", "captain", "widow", "teacher", "baker", "hunter", "weaver")
TEXT = (
    "The old lighthouse stood at the edge of the cliff, and every evening the {hero} climbed the narrow stairs to light the lamp. "
    "The {hero} had done so for thirty years, in storm and in calm, and knew the name of every ship that passed. One night in November "
    "a fog came in from the sea so thick that the light could hardly be seen from the harbour. The {hero} rang the bell until morning, "
    "and when the fog lifted three ships lay safe."
)
VALUES: tuple[dict[str, Any], ...] = (
    {"type": "integer", "minimum": 0, "maximum": 9999},
    {"type": "boolean"},
    {"enum": ["none", "low", "high"]},
)
KEYS = (
    "customer_identification_number_in_our_system",
    "delivery_address_differs_from_billing_address",
    "priority_of_the_order_as_agreed_with_the_customer",
    "total_number_of_ordered_items_including_gifts",
    "customer_wants_to_be_called_before_delivery",
    "level_of_discount_granted_by_the_sales_team",
    "invoice_amount_in_euro_including_all_taxes",
    "delivery_was_confirmed_by_the_customer",
)
request_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Task:
    text: str
    max_tokens: int
    temperature: float = 0.0
    schema: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Of a round: decoded tokens a second with drafts and without, and what was drafted."""

    drafts_per_s: float
    plain_per_s: float
    drafted: int
    accepted: int


def copy(number: int) -> Task:
    text = TEXT.format(hero=HEROES[number % len(HEROES)])
    return Task(f"Repeat the following text exactly, word for word, but write 'March' instead of 'November':\n\n{text}", 120)


def table(number: int) -> Task:
    rng = random.Random(number)
    rows = [f"{name} | {rng.randint(18, 80)} | {rng.choice(CITIES)}" for name in rng.sample(NAMES, 6)]
    fields: dict[str, dict[str, Any]] = {
        "name": {"enum": list(NAMES)},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": list(CITIES)},
    }
    schema = {"type": "array", "items": _object(fields), "minItems": 6, "maxItems": 6}
    return Task("\n".join(["Write this table as JSON:", "name | age | city", *rows]), 300, 0.0, schema)


def form(number: int) -> Task:
    fields = {key: VALUES[index % len(VALUES)] for index, key in enumerate(KEYS)}
    return Task(f"Fill in the form for {NAMES[number % len(NAMES)]} with made-up data, number {number}.", 300, 0.8, _object(fields))


def prose(number: int) -> Task:
    return Task(f"Write a story about {SUBJECTS[number % len(SUBJECTS)]}, number {number}.", 120, 1.0)


TASKS = {task.__name__: task for task in (copy, table, form, prose)}


def _object(fields: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def job_of(task: Task, seed: int, tokenizer: Tokenizer) -> Generate:
    return Generate(
        f"drafts-{next(request_numbers)}",
        tokenizer.encode_chat([{"role": "user", "content": task.text}]),
        task.max_tokens,
        SamplingParams(temperature=task.temperature, seed=seed),
        grammar=None if task.schema is None else json_grammar(task.schema),
    )


def run(engine: Engine, jobs: Sequence[Generate]) -> tuple[float, list[tuple[int, ...]], int, int]:
    """Tokens a second, the tokens of each answer, how many were drafted and accepted."""
    tokens: dict[str, list[int]] = {job.id: [] for job in jobs}
    begin_s, first, drafted, accepted = 0.0, 0, 0, 0
    for job in jobs:
        engine.submit(job)
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Failed):
                raise BenchFailed(event.error.message)
            if isinstance(event, Delta):
                tokens[event.id] += event.tokens
                drafted, accepted = drafted + event.drafted, accepted + event.accepted
        if not begin_s and all(tokens.values()):
            begin_s, first = time.perf_counter(), sum(map(len, tokens.values()))
    decoded = sum(map(len, tokens.values())) - first
    return decoded / (time.perf_counter() - begin_s), [tuple(each) for each in tokens.values()], drafted, accepted


def compare(engine: Engine, tokenizer: Tokenizer, what: str, at_once: int, round_: int) -> Result:
    """One round of either, of which every second begins with drafts. Raises `BenchFailed` if the tokens are not the same."""
    tasks = [(TASKS[what](number), number) for number in range(round_ * at_once, (round_ + 1) * at_once)]
    runs, proposer = {}, engine.drafter.proposer
    for drafts in (True, False) if round_ % 2 else (False, True):
        engine.drafter.is_on, engine.drafter.proposer = drafts or proposer is not None, proposer if drafts else None
        runs[drafts] = run(engine, [job_of(task, seed, tokenizer) for task, seed in tasks])
    engine.drafter.proposer = proposer
    if runs[True][1] != runs[False][1]:
        raise BenchFailed(f"{what}, {at_once} at once: the tokens with drafts are not those without")
    return Result(runs[True][0], runs[False][0], *runs[True][2:])


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a result for each kind of answers and each number of requests at once; the first round of each is not counted."""
    slots = max(args.at_once)
    engine, _ = create_engine(ModelSettings(path=args.model, draft=args.draft, quantize=args.quantize, slots=slots, context=2048))
    tokenizer = Tokenizer(args.model)
    for what, at_once in itertools.product(args.what, args.at_once):
        results = [compare(engine, tokenizer, what, at_once, round_) for round_ in range(args.rounds + 1)][1:]
        ratios = [result.drafts_per_s / result.plain_per_s for result in results]
        rounds = [asdict(result) for result in results]
        yield {"what": what, "at_once": at_once, "ratio": statistics.median(ratios), "ratios": ratios, "rounds": rounds}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m app.benchmarks.drafts", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", help="a draft model, as model.draft")
    parser.add_argument("--quantize", default="none", choices=["none", "int8", "nf4", "fp4", "int4"])
    parser.add_argument("--what", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8], metavar="N", help="requests in flight")
    parser.add_argument("--rounds", type=int, default=5)
    return print_json_lines(measure(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
