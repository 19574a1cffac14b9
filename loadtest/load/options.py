"""The command line of a load test, beside Locust's own, and what it comes to. Knows no server and no user."""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.load.goodput import Slo
from loadtest.load.stages import Stage, stages
from loadtest.prompts import LENGTHS, Mix

SPAN = re.compile(r"(\d+(?:\.\d+)?)(h|m|s|)")
UNITS_S = {"h": 3600, "m": 60, "s": 1, "": 1}
MIX = "short=6,medium=3,long=1"


@dataclass(frozen=True, slots=True)
class Load:
    """What is offered, of what it is made, what is left out, and what has to come in time."""

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
    def opened(self) -> bool:
        return self.plan[0].opened


def add_options(parser: Any) -> None:
    """Everything here is in the manifest of the run. What has to be known before the run is no field of Locust's web page."""
    add, early = parser.add_argument, {"include_in_web_ui": False}
    add("--ladder", default="", help='closed loop: numbers of users, one stage each, such as "1 2 4 8"; else --users', **early)
    add("--rates", default="", help='open loop: Poisson arrivals a second, one stage each, such as "0.5 1 2"', **early)
    add("--out", default="runs", help="folder of the run's files", **early)
    add("--stage", default="30s", help="how long a stage of --ladder or --rates is measured, behind its warm-up")
    add("--warm-up", default="5s", help="of each stage; requests that leave in it are left out of the statistics")
    add("--drain", default="60s", help="how long answers may take that are still under way when a stage of --rates, or the run, ends")
    add("--seed", type=int, default=0, help="the same seed asks the same")
    add("--max-tokens", type=int, default=64, help="of a chat")
    add("--score-words", type=int, default=150, help="of a text to score")
    add("--lengths", default=MIX, help=f"weights of the length classes of prompts: {', '.join(LENGTHS)}")
    add("--prefixes", type=int, default=4, help="how many system messages are shared; 0 for none")
    add("--prefix-share", type=float, default=0.5, help="share of chats that begin with one of them")
    add("--turns", type=int, default=4, help="of a conversation")
    add("--think", type=float, default=1.0, help="mean pause of a user between two requests, in seconds; half to one and a half times")
    add("--leave-after", type=int, default=5, help="deltas after which a leaving user goes away")
    add("--slo-ttft-ms", type=float, default=None, help="limit of the first token, for goodput")
    add("--slo-tpot-ms", type=float, default=None, help="limit of the time per further token, for goodput")
    add("--goodput", type=float, default=None, help="share of chats that has to keep the limits in every stage, or the exit code is 3")
    add("--served-model", default=None, help="model to ask, where a server has several; the first one when left out")
    add("--quantization", default=None, help="for the manifest, where the server does not tell it")
    add("--extra-body", default="{}", help='JSON that goes into every chat, such as {"ignore_eos": true}')


def read_options(given: argparse.Namespace) -> Load:
    """Raises ValueError, with a message for the person who gave them."""
    slo = Slo(_given(given.slo_ttft_ms), _given(given.slo_tpot_ms), _given(given.goodput))
    if slo.share is not None and (slo.ttft_ms is None and slo.tpot_ms is None or not 0 < slo.share <= 1):
        raise ValueError("--goodput is a share above 0, at most 1, and needs --slo-ttft-ms or --slo-tpot-ms")
    if min(given.max_tokens, given.score_words, given.turns, given.leave_after) < 1 or min(given.think, given.prefixes) < 0:
        raise ValueError("--max-tokens, --score-words, --turns and --leave-after are at least 1, --think and --prefixes at least 0")
    extra = json.loads(given.extra_body)
    if not isinstance(extra, dict):
        raise ValueError("--extra-body is a JSON object")
    return Load(
        plan=_plan(given),
        mix=_mix(given.lengths, given.prefixes, given.prefix_share),
        slo=slo,
        seed=given.seed,
        max_tokens=given.max_tokens,
        score_words=given.score_words,
        turns=given.turns,
        think_s=given.think,
        leave_after=given.leave_after,
        drain_s=seconds_of(given.drain),
        model=given.served_model or None,
        quantization=given.quantization or None,
        extra=extra,
        out=Path(given.out),
    )


def _given(value: float | str | None) -> float | None:
    """Locust's page sends a text, and an empty one for what was not given."""
    return None if value in (None, "") else float(value)


def _plan(given: argparse.Namespace) -> tuple[Stage, ...]:
    ladder, rates = _numbers("--ladder", given.ladder), _numbers("--rates", given.rates)
    seconds, warm_up_s = seconds_of(given.stage), seconds_of(given.warm_up)
    if ladder and rates:
        raise ValueError("--ladder is a closed loop and --rates an open one: give one of them")
    if any(level != int(level) for level in ladder):
        raise ValueError("--ladder is made of whole users")
    if ladder or rates:
        return tuple(stages(ladder or rates, bool(rates), seconds, warm_up_s))
    return (Stage(0, given.num_users or 1, False, None, warm_up_s),)


def _numbers(name: str, text: str) -> list[float]:
    try:
        values = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"{name} is a list of numbers") from None
    if any(not 0 < value < 10_000 for value in values):
        raise ValueError(f"{name}: numbers above 0, under 10,000")
    return values


def seconds_of(text: str) -> float:
    """30, 30s, 1.5m, 1m30s."""
    parts = SPAN.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no time such as 30s, 1.5m or 1m30s")
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def _mix(lengths: str, prefixes: int, share: float) -> Mix:
    pairs = [part.partition("=") for part in lengths.replace(",", " ").split()]
    weights = {name: float(weight or 1) for name, _, weight in pairs}
    if not weights.keys() <= LENGTHS.keys() or min(weights.values(), default=0) < 0 or not sum(weights.values()):
        raise ValueError(f"--lengths is made of {', '.join(LENGTHS)} with weights, such as {MIX}")
    if not 0 <= share <= 1:
        raise ValueError("--prefix-share is from 0 to 1")
    return Mix(weights, prefixes, share)
