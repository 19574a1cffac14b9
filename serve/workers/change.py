"""The settings of a model's next version: those of the present one, with what a request changes. Knows no paths and no processes."""

from typing import Any

from pydantic import Field, ValidationError, create_model

from app.errors import InvalidRequest
from app.schemas.wire import Wire
from app.settings import ModelSettings

# These belong to the weights: with others they are left out, unless they are named, too.
OF_ITS_PATH = ("observer", "draft", "calibration", "chat_template")
Change: type[Wire] = create_model(  # type: ignore[call-overload]
    "ModelChange",
    __base__=Wire,
    __doc__="The settings of a model (`model.*`) that its next version has otherwise than the present one.",
    **{
        name: (field.rebuild_annotation(), Field(None, description=field.description))
        for name, field in ModelSettings.model_fields.items()
        if name not in {"name", "aliases", "adapters"}  # names stay; adapters come and go by routes of their own
    },
)


def changed(name: str, present: ModelSettings | None, fields: dict[str, Any]) -> ModelSettings:
    """The settings `fields` in place of those of the present version; null stands for the default. Raises `InvalidRequest`."""
    if present is None and not fields.get("path"):
        raise InvalidRequest(f"'path' is missing: there is no model '{name}' yet that has one", param="path", code="missing_parameter")
    for field, value in fields.items():
        if isinstance(value, str) and not value.isprintable():
            raise InvalidRequest(f"'{field}' has control characters", param=field)
    values = {} if present is None else present.model_dump(exclude_unset=True, exclude={"adapters"})
    if fields.get("path", values.get("path")) != values.get("path"):
        values = {field: value for field, value in values.items() if field not in OF_ITS_PATH}
    given = {field: value for field, value in fields.items() if value is not None}
    kept = {field: value for field, value in values.items() if field not in fields}
    if "sampling" in given:
        given["sampling"] = {**values.get("sampling", {}), **given["sampling"]}
    try:
        return ModelSettings.model_validate({**kept, **given, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"'{param}': {first['msg'].removeprefix('Value error, ')}", param=param) from error
