"""What every group of settings is: frozen, and without fields that nobody knows. And a text that is not empty."""

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator


def _filled(text: str) -> str:
    """An empty path would be the present folder."""
    if not text.strip():
        raise ValueError("is empty: give a value, or leave the setting out")
    return text


Filled = Annotated[str, AfterValidator(_filled)]


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Raises `ValueError` for true and false in the place of a number, which pydantic takes for 1 and 0."""
        kind = cls.model_fields[info.field_name or ""].annotation
        kinds = {kind, *get_args(kind)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError(f"is to be a number, and {str(value).lower()} is none")
        return value
