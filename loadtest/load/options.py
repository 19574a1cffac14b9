"""The command line of a load test: the options it adds to Locust's own, and the `Load` they describe. Knows no server and no user."""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.load.goodput import Slo
from loadtest.load.stages import Stage, plan_stages
from loadtest.prompts import LENGTHS, Mix

DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|m|s|)")
UNITS_S = {"h": 3600, "m": 60, "s": 1, "": 1}
DEFAULT_LENGTHS = "short=6,medium=3,long=1"
MAX_LEVEL = 10_000  # users, or arrivals per second


@dataclass(frozen=True, slots=True)
class Load:
    """A load test: its stages, its requests and its service levels. The field names are keys of the manifest's `options`."""

    plan: tuple[Stage, ...]
    mix: Mix
    slo: Slo
    seed: int
    max_tokens: int
    score_words: int
    turns: int
    think_s: float
    leave_after: int
    drain_s: float
    model: str | None
    quantization: str | None
    extra: dict[str, Any]
    out: Path

    @property
    def is_open_loop(self) -> bool:
        return self.plan[0].opened


def add_options(parser: Any) -> None:
    """All of them are recorded in the manifest. Those that are read before the run starts are no fields of Locust's web page."""
    add, early = parser.add_argument, {"include_in_web_ui": False}
    add("--ladder", default="", help='closed loop: numbers of users, one stage each, such as "1 2 4 8"; without it --users', **early)
    add("--rates", default="", help='open loop: Poisson arrivals per second, one stage each, such as "0.5 1 2"', **early)
    add("--out", default="runs", help="folder of the run files", **early)
    add("--stage", default="30s", help="how long each stage of --ladder or --rates is measured, after its warm-up")
    add("--warm-up", default="5s", help="at the start of each stage; requests sent in it are left out of the statistics")
    add("--drain", default="60s", help="how long to wait for unfinished answers when a stage of --rates, or the run, ends")
    add("--seed", type=int, default=0, help="of prompts and arrivals: the same seed sends the same requests")
    add("--max-tokens", type=int, default=64, help="limit of each answer to a chat")
    add("--score-words", type=int, default=150, help="length of each text to score")
    add("--lengths", default=DEFAULT_LENGTHS, help=f"weights of the length classes of prompts: {', '.join(LENGTHS)}")
    add("--prefixes", type=int, default=4, help="number of different shared system messages; 0: none")
    add("--prefix-share", type=float, default=0.5, help="share of chats that begin with a shared system message")
    add("--turns", type=int, default=4, help="number of turns of a conversation")
    add(
        "--think",
        type=float,
        default=1.0,
        help="mean pause of a user between two requests, in seconds; drawn from half to one and a half times",
    )
    add("--leave-after", type=int, default=5, help="number of deltas after which a LeavingUser disconnects")
    add("--slo-ttft-ms", type=float, default=None, help="limit of the time to the first token, for goodput")
    add("--slo-tpot-ms", type=float, default=None, help="limit of the time per output token, for goodput")
    add("--goodput", type=float, default=None, help="share of chats that must meet the limits in every stage; otherwise the exit code is 3")
    add("--served-model", default=None, help="model to send requests to, if the server has several; by default the first one")
    add("--quantization", default=None, help="recorded in the manifest, for a server that does not report it")
    add("--extra-body", default="{}", help='JSON object merged into the body of every chat, such as {"ignore_eos": true}')


def read_options(args: argparse.Namespace) -> Load:
    """Raises ValueError with a message for the person who chose the options."""
    slo = Slo(_optional_number(args.slo_ttft_ms), _optional_number(args.slo_tpot_ms), _optional_number(args.goodput))
    if slo.share is not None and (slo.ttft_ms is None and slo.tpot_ms is None or not 0 < slo.share <= 1):
        raise ValueError("--goodput is a share above 0 and at most 1, and it needs --slo-ttft-ms or --slo-tpot-ms")
    if min(args.max_tokens, args.score_words, args.turns, args.leave_after) < 1 or min(args.think, args.prefixes) < 0:
        raise ValueError("--max-tokens, --score-words, --turns and --leave-after must be at least 1, --think and --prefixes at least 0")
    extra = json.loads(args.extra_body)
    if not isinstance(extra, dict):
        raise ValueError('--extra-body must be a JSON object, such as {"ignore_eos": true}')
    return Load(
        plan=_plan(args),
        mix=_mix(args.lengths, args.prefixes, args.prefix_share),
        slo=slo,
        seed=args.seed,
        max_tokens=args.max_tokens,
        score_words=args.score_words,
        turns=args.turns,
        think_s=args.think,
        leave_after=args.leave_after,
        drain_s=seconds_of(args.drain),
        model=args.served_model or None,
        quantization=args.quantization or None,
        extra=extra,
        out=Path(args.out),
    )


def _optional_number(value: float | str | None) -> float | None:
    """Locust's web page sends a string, and an empty one for a field without a value."""
    return None if value in (None, "") else float(value)


def _plan(args: argparse.Namespace) -> tuple[Stage, ...]:
    ladder, rates = _levels("--ladder", args.ladder), _levels("--rates", args.rates)
    seconds, warm_up_s = seconds_of(args.stage), seconds_of(args.warm_up)
    if ladder and rates:
        raise ValueError("--ladder asks for a closed loop and --rates for an open one: give only one of them")
    if any(level != int(level) for level in ladder):
        raise ValueError("--ladder takes whole numbers of users")
    if ladder or rates:
        return tuple(plan_stages(ladder or rates, bool(rates), seconds, warm_up_s))
    return (Stage(0, args.num_users or 1, False, None, warm_up_s),)


def _levels(option: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"{option} must be a list of numbers, such as 1 2 4") from None
    if any(not 0 < value < MAX_LEVEL for value in values):
        raise ValueError(f"{option}: each number must be above 0 and below {MAX_LEVEL:,}")
    return values


def seconds_of(text: str) -> float:
    """Parses a duration such as 30, 30s, 1.5m or 1m30s. Raises ValueError."""
    parts = DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write it as 30s, 1.5m or 1m30s")
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def _mix(lengths: str, prefixes: int, share: float) -> Mix:
    """`lengths` is a list of name=weight; a name alone has weight 1."""
    pairs = [part.partition("=") for part in lengths.replace(",", " ").split()]
    weights = {name: float(weight or 1) for name, _, weight in pairs}
    if not weights.keys() <= LENGTHS.keys() or min(weights.values(), default=0) < 0 or not sum(weights.values()):
        raise ValueError(f"--lengths takes the classes {', '.join(LENGTHS)} with weights, not all 0, such as {DEFAULT_LENGTHS}")
    if not 0 <= share <= 1:
        raise ValueError("--prefix-share must be from 0 to 1")
    return Mix(weights, prefixes, share)
