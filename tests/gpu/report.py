"""What a part finds: a line of JSON on stdout for each check and each measurement, as soon as it is known."""

import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Report:
    def __init__(self, seconds: float) -> None:
        self._end_s = time.monotonic() + seconds
        self.failed = False

    @property
    def left_s(self) -> float:
        return self._end_s - time.monotonic()

    def has(self, name: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, that is said under `name`."""
        if self.left_s >= seconds:
            return True
        self.skip(name, f"{max(0.0, self.left_s):.0f} s are left, it takes {seconds:.0f}")
        return False

    @contextmanager
    def check(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields where to put numbers. What is raised inside is a failure of this check, whatever it is, and the next one follows."""
        found: dict[str, Any] = {}
        begin = time.monotonic()
        try:
            yield found
        except Exception as error:  # noqa: BLE001  (the program exists to see what goes wrong)
            self.failed = True
            trace = traceback.format_exc().strip().splitlines()[-9:]
            self._write("check", name, ok=False, why=f"{type(error).__name__}: {error}"[:400], **found, trace=trace)
        else:
            self._write("check", name, ok=True, **found, seconds=round(time.monotonic() - begin, 2))

    def measure(self, name: str, **numbers: Any) -> None:
        self._write("measure", name, **numbers)

    def skip(self, name: str, why: str) -> None:
        self._write("skip", name, why=why)

    @staticmethod
    def _write(kind: str, name: str, **fields: Any) -> None:
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in fields.items()}
        sys.stdout.write(json.dumps({"kind": kind, "name": name, **rounded}) + "\n")
        sys.stdout.flush()
