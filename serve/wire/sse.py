"""Server-sent events: a body as one, and what the engine tells while nothing comes, as comments. Knows no answer."""

import json
import math

from app.engine.events import Notice
from app.engine.notices import Interrupted, Loading, Progress, SetBack
from app.schemas import PromptProgress

LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}  # some clients take these for the end of a line


def sse(body: dict[str, object]) -> str:
    """A server-sent event. Characters that some clients take for the end of a line are escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text.translate(LINE_BREAKS)}\n\n"


def comments(event: Notice, has_started: bool) -> list[str]:
    """The notice as an SSE comment, which clients that only read events ignore. An answer that has begun has no place in the queue."""
    if isinstance(event, Progress):
        return []
    if isinstance(event, Loading):
        return [": loading\n\n" if event.loaded is None else f": loading {event.loaded:.0%}\n\n"]
    if isinstance(event, Interrupted | SetBack):
        return [f": {_stop_of(event)}\n\n"]
    if has_started:
        return []
    eta = "" if event.wait_s is None else f" eta_s={math.ceil(event.wait_s)}"
    return [f": queued position={event.position}{eta}\n\n"]


def _stop_of(event: Interrupted | SetBack) -> str:
    """Why nothing comes for a while."""
    if isinstance(event, SetBack):
        return "set back: the cache is full; the answer goes on when there is room"
    if event.fingerprint is not None:
        return "interrupted: the model was replaced; the answer goes on in its new version"
    return "interrupted: the model's process died; the answer goes on in another one"


def progress_of(event: Progress) -> PromptProgress:
    time_ms = round(event.elapsed_s * 1000)
    return PromptProgress(total=event.total, cache=event.cached, processed=event.processed, time_ms=time_ms)
