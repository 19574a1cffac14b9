"""What a run tells: one JSON object a line on standard output, for the process that started it. Nothing else is written there."""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

Tell = Callable[[str, dict[str, Any]], None]


class Channel:
    """Takes standard output for itself: what a library prints goes to standard error instead."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._lock = threading.Lock()

    def __call__(self, kind: str, values: dict[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps({"kind": kind, **values}, ensure_ascii=False) + "\n")  # so what is no Unicode is replaced
