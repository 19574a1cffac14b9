"""What every group of settings is: frozen, and without fields that nobody knows. And a text that is not empty."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _filled(text: str) -> str:
    """An empty path would be the present folder."""
    if not text.strip():
        raise ValueError("is empty: give a value, or leave the setting out")
    return text


Filled = Annotated[str, AfterValidator(_filled)]


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
