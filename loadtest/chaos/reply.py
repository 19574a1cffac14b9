"""What a client sees of one response: server-sent events or a JSON body, in one form that can be compared. Pure: knows no socket."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 1e-4  # of scores and log-probabilities: the rows that share a step change their last digits. Texts must be equal
# what depends on the moment: how much of a prompt was cached, how many tokens were drafted
UNCOMPARED = {"id", "created", "system_fingerprint", "prompt_tokens_details", "completion_tokens_details", "service_tier"}


@dataclass(slots=True)
class Reply:
    """`status` 0: no response. `broken`: how the connection ended, if neither side closed it in order. `complete`: the answer has its end.

    `answer` is what is compared; `error` is the content of an error's envelope, or of an error event; `fault` says what cannot be read.
    """

    status: int = 0
    retry_after: str | None = None
    broken: str | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    fault: str | None = None
    complete: bool = False
    comments: int = 0


@dataclass(slots=True)
class EventReader:
    """Reads a stream of server-sent events into a reply. Comments (lines that begin with a colon) are counted and otherwise ignored.

    It takes bytes, as str.splitlines would also split at characters that may occur inside an event.
    """

    reply: Reply
    unparsed: bytes = b""
    data: list[str] = field(default_factory=list)
    done: bool = False

    def feed(self, chunk: bytes) -> None:
        *lines, self.unparsed = (self.unparsed + chunk).split(b"\n")
        for line in lines:
            self._read_line(line.removesuffix(b"\r").decode("utf-8", "replace"))

    def close(self) -> None:
        """The response ended: decide whether the answer is complete."""
        choices = self.reply.answer.get("choices", {})
        ended = bool(choices) and all(choice.get("finish_reason") for choice in choices.values())
        self.reply.complete = self.done and ended and self.reply.error is None

    def _read_line(self, line: str) -> None:
        if line.startswith(":"):
            self.reply.comments += 1
        elif line.startswith("data:"):
            self.data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and self.data:
            data, self.data = "\n".join(self.data), []
            self._read_event(data)

    def _read_event(self, data: str) -> None:
        if self.done:
            self.reply.fault = "an event after [DONE]"
        elif data == "[DONE]":
            self.done = True
        else:
            try:
                self._add(json.loads(data))
            except (AttributeError, KeyError, TypeError, ValueError):
                self.reply.fault = "an event that is not a chunk of an answer"

    def _add(self, event: Mapping[str, Any]) -> None:
        if "error" in event:
            self.reply.error = dict(event["error"])
            return
        if event.get("usage"):
            self.reply.answer["usage"] = comparable(event["usage"])
        choices = self.reply.answer.setdefault("choices", {})
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "finish_reason": None, "logprobs": []})
            choice["text"] += text_of(part)
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            choice["logprobs"] += logprobs_of(part)


def read_body(reply: Reply, body: bytes) -> None:
    """Read a whole body into a reply: an answer, scores, or an error."""
    try:
        content = json.loads(body)
        if reply.status != 200:
            reply.error = dict(content["error"])
            return
        if "choices" in content:
            reply.answer = {"choices": {choice["index"]: choice_of(choice) for choice in content["choices"]}}
            reply.complete = all(choice["finish_reason"] for choice in reply.answer["choices"].values())
        else:
            reply.answer = {"data": comparable(content["data"])}
            reply.complete = bool(content["data"]) and all(item["object"] != "error" for item in content["data"])
        reply.answer["usage"] = comparable(content["usage"])
    except (AttributeError, KeyError, TypeError, ValueError):
        reply.fault = "a body that is neither an answer nor an error"


def choice_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": text_of(choice), "finish_reason": choice["finish_reason"], "logprobs": logprobs_of(choice)}


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of a completion, of a chat's message, or of a chunk's delta."""
    if "text" in choice:
        return str(choice["text"])
    message = choice["message"] if "message" in choice else choice["delta"]
    return message.get("content") or ""


def logprobs_of(choice: Mapping[str, Any]) -> list[Any]:
    """Token by token, whether they are a chat's or a completion's."""
    logprobs = choice.get("logprobs") or {}
    if "content" in logprobs:
        return [(entry["token"], entry["logprob"]) for entry in logprobs["content"] or ()]
    return list(zip(logprobs.get("tokens", ()), logprobs.get("token_logprobs", ()), strict=True))


def comparable(value: Any) -> Any:
    """Without what differs between two equal answers: ids, times, and how much of the prompt was cached."""
    if isinstance(value, Mapping):
        return {name: comparable(inner) for name, inner in value.items() if name not in UNCOMPARED}
    return [comparable(inner) for inner in value] if isinstance(value, list) else value


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal: texts, tokens and counts exactly, other numbers within `TOLERANCE`."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)


def readable(error: Mapping[str, Any] | None) -> bool:
    """Whether it says in words what happened, and has a code that a program can compare."""
    return error is not None and all(isinstance(error.get(name), str) and error[name] for name in ("message", "code"))
