"""The log of the server's processes: in the form of `app.log`, with the id of the request that is being served."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from app.log import Form, configure
from serve.observe.record import current_record

LIBRARIES = ("litserve", "uvicorn", "uvicorn.error")  # they bring handlers of their own


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: str = "info"
    format: Form = "text"

    def configure(self) -> None:
        configure(self.level, self.format, request_id)

    @staticmethod
    def adopt_libraries() -> None:
        """Let the libraries' lines go through our handler, after they have added theirs."""
        for name in LIBRARIES:
            library = logging.getLogger(name)
            library.handlers.clear()
            library.propagate = True


def request_id() -> Mapping[str, str]:
    request = current_record()
    return {} if request is None else {"request_id": request.id}
