"""What all bodies share: the strict base class, token counts, errors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

Tier = Literal["auto", "default", "flex", "priority", "scale"]
UsedTier = Literal["default", "flex"]
MAX_TIMEOUT_S = 86_400
MAX_FIELDS = 256  # of an object
MAX_MISTAKES = 2048  # in the objects of all lists of a body
TIER = "flex marks batch work: it waits behind interactive requests; all others mean default"


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole_numbers(values: Any) -> Any:
    """A list with 20 for each 20.0. A list of a hundred thousand ids takes a tenth of the time that `Int` for each of them would."""
    if isinstance(values, list) and float in set(map(type, values)):
        return [_whole(value) for value in values]
    return values


def _seed(value: object) -> object:
    return None if value == RANDOM_SEED else _whole(value)


def _no_number(value: object) -> object:
    """Python takes 0 for false and 1 for true."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


OnlyFalse = Annotated[Literal[False], BeforeValidator(_no_number)]
OnlyTrue = Annotated[Literal[True], BeforeValidator(_no_number)]
Int = Annotated[int, BeforeValidator(_whole)]  # of a request: some JSON libraries write 20 as 20.0
WHOLE = BeforeValidator(whole_numbers)  # of a long list of int
RANDOM_SEED = -1  # vLLM's and llama-server's word for no seed
Seed = Annotated[Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None, BeforeValidator(_seed)]
SEED = "the same request with the same seed gives the same tokens; -1 is as if it were left out: a random one"
Timeout = Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)]
TIMEOUT = "seconds until the request fails with 408, in the queue as well as while it is answered; the header X-Request-Timeout is the same"


def kind_of(value: object) -> str | None:
    """The `type` of an object as a client wrote it, or of one that is parsed already; None where it is no text."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


class Wire(BaseModel):
    """Base of all bodies. Unknown fields are refused, and so is a value of another type: a quoted number is not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        """An error for each of a hundred thousand unknown fields would take seconds."""
        if isinstance(value, dict) and len(value) > MAX_FIELDS and cls.model_config["extra"] == "forbid":
            raise ValueError(f"an object of {len(value)} fields; at most {MAX_FIELDS} are supported")
        return value


_mistakes: ContextVar[list[int] | None] = ContextVar("mistakes", default=None)  # one number: those found so far


@contextmanager
def few_mistakes() -> Iterator[None]:
    """Within it, no more objects of lists that are `COUNTED` are looked at, once `MAX_MISTAKES` are found in them: a body of 2 MB has room
    for a million, which would take many seconds and gigabytes.
    """
    token = _mistakes.set([0])
    try:
        yield
    finally:
        _mistakes.reset(token)


def _counted(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    found = _mistakes.get()
    if found is None:
        return validate(value)
    before = found[0]
    if before >= MAX_MISTAKES:
        raise PydanticCustomError("not_read", "not read, as so much before it is wrong")
    try:
        return validate(value)
    except ValidationError as error:
        found[0] = before + error.error_count()
        raise


COUNTED = WrapValidator(_counted)  # of the objects of a list; scalars have `fail_fast`, which would hide all unknown fields but one


def at_most(items: int) -> BeforeValidator:
    """The bound of a dictionary, looked at before its items are."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > items:
            raise PydanticKnownError("too_long", {"field_type": "Dictionary", "max_length": items, "actual_length": len(value)})
        return value

    return BeforeValidator(check)


def contradiction(fields: Iterable[str]) -> PydanticCustomError:
    """The error of fields that mean the same and say different things. It names the last one as the wrong one."""
    names = [*fields]
    said = {"fields": " and ".join(names), "param": names[-1]}
    return PydanticCustomError("contradiction", "{fields} contradict each other; give one of them", said)


def misfit(field: str, problem: str) -> PydanticCustomError:
    """The error of an object whose fields do not fit together; `field` is the one to change."""
    return PydanticCustomError("value_error", "{problem}", {"problem": problem, "param": field})


class PromptTokensDetails(Wire):
    cached_tokens: int = Field(description="prompt tokens that were not computed again, because the KV cache still held them")


class CompletionTokensDetails(Wire):
    reasoning_tokens: int = Field(description="tokens of the answer that a reasoning model thought")
    accepted_prediction_tokens: int = Field(0, description="tokens of the answer that were drafted, so that they took no step of their own")
    rejected_prediction_tokens: int = Field(0, description="tokens that were drafted and are not in the answer; they are in no other count")


class Usage(Wire):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class ErrorBody(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Wire):
    error: ErrorBody
