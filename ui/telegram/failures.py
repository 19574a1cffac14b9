"""What a user of the bot is told when the server fails: a sentence without the server's address, which is none of theirs. Pure."""

import httpx

from ui.client import ServerError

UNREACHABLE = "The model’s server does not answer at the moment. Please try again in a minute."
SLOW = "The model’s server took too long. Please try again, or send a shorter text."
LOST = "The connection to the model’s server was lost before the answer was complete. Please try again."
LOADING = "The model is still being loaded. Please try again in a minute."
CLOSED = "The model’s server does not let this bot in. Only its owner can change that."
UNKNOWN = "The model’s server sent something that I cannot read. Please try again later."
KEY_CODES = frozenset({"missing_api_key", "invalid_api_key", "key_banned", "forbidden"})
CONTEXT_CODE = "context_length_exceeded"
LOADING_CODE = "not_ready"


def is_too_long(error: ServerError) -> bool:
    return error.code == CONTEXT_CODE


def is_shut_out(error: ServerError) -> bool:
    """Whether the server wants another key: something for the bot's owner to mend."""
    return error.code in KEY_CODES


def sentence(error: ServerError) -> str:
    cause = error.__cause__
    if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
        return UNREACHABLE
    if isinstance(cause, httpx.TimeoutException):
        return SLOW
    if isinstance(cause, httpx.HTTPError):
        return LOST
    if cause is not None:
        return UNKNOWN
    if error.code == LOADING_CODE:
        return LOADING
    return CLOSED if is_shut_out(error) else f"{error.message[:1].upper()}{error.message[1:]}"
