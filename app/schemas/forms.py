"""The fields of chat and completions that give the answer a form: OpenAI's `response_format`, vLLM's and llama-server's own ones."""

from typing import Annotated

from pydantic import Field, model_validator

from app.schemas.messages import ResponseFormat, Schema
from app.schemas.wire import Wire

Choices = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=4096)]
REGEX = "regular expression that the whole answer matches"
CHOICE = "the answer is exactly one of these texts"
GRAMMAR = "grammar of the answer, in the syntax of Lark or of llama.cpp (GBNF)"
JSON = "JSON schema that the answer conforms to, as an object or as a text"
KINDS = ("json", "regex", "choice", "grammar", "json_object")


class StructuredOutputs(Wire):
    """vLLM's form of an answer: exactly one of `json`, `regex`, `choice`, `grammar` and `json_object`."""

    json_: Schema | str | None = Field(None, alias="json", description=JSON)
    regex: str | None = Field(None, description=REGEX)
    choice: Choices | None = Field(None, description=CHOICE)
    grammar: str | None = Field(None, description=GRAMMAR)
    json_object: bool | None = Field(None, description="true: any JSON object")
    structural_tag: None = Field(None, description="null only, like whitespace_pattern")
    whitespace_pattern: None = None
    disable_fallback: bool | None = Field(None, description="no effect, like the next two, which are so anyway")
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        given = [kind for kind in KINDS if kind in self.given]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}")
        return self

    @property
    def given(self) -> dict[str, object]:
        """The forms that are asked for, by their names."""
        values = {"json": self.json_, "regex": self.regex, "choice": self.choice, "grammar": self.grammar, "json_object": self.json_object}
        return {name: value for name, value in values.items() if value is not None and value is not False}


class FormFields(Wire):
    """At most one of them."""

    response_format: ResponseFormat | None = Field(None, description="the form of the answer; any text when left out")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's field for the form of the answer")
    guided_json: Schema | str | None = Field(None, description=f"older name of structured_outputs.json: {JSON}")
    guided_regex: str | None = Field(None, description=f"older name of structured_outputs.regex: {REGEX}")
    guided_choice: Choices | None = Field(None, description=f"older name of structured_outputs.choice: {CHOICE}")
    guided_grammar: str | None = Field(None, description=f"older name of structured_outputs.grammar: {GRAMMAR}")
    grammar: str | None = Field(None, description=f"llama-server's field: {GRAMMAR}")
    json_schema: Schema | None = Field(None, description="llama-server's field: JSON schema that the answer conforms to")

    @property
    def forms(self) -> list[str]:
        """The fields that give the answer a form."""
        fields = [name for name in FormFields.model_fields if getattr(self, name) is not None and getattr(self, name) != ""]
        is_text = self.response_format is not None and self.response_format.type == "text"
        return [name for name in fields if not (name == "response_format" and is_text)]
