"""What is said of the process that answers requests when it ends by itself."""

import signal

import pytest

from serve.processes import end_of


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (1, "ended; the lines above say why"),
        (-signal.SIGKILL, "was ended by signal 9 (Killed); the system does that where memory ends"),
        (-signal.SIGSEGV, "was ended by signal 11 (Segmentation fault)"),
        (-40, "was ended by signal 40 ("),
    ],
)
def test_a_signal_is_named_as_it_leaves_no_line(status: int, says: str) -> None:
    assert end_of(status).startswith(f"the process that answers requests {says}")
