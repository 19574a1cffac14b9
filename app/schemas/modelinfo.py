"""Bodies of /v1/models for Anthropic's clients, whose fields of these names hold something else than those of the other clients."""

from typing import Literal

from pydantic import Field

from app.schemas.wire import Wire


class Support(Wire):
    supported: bool


NO, YES = Support(supported=False), Support(supported=True)


class ThinkingTypes(Wire):
    """The values of `thinking.type`."""

    adaptive: Support
    between_tools: Support = NO
    disabled: Support
    enabled: Support


class ThinkingSupport(Support):
    types: ThinkingTypes


class EffortSupport(Support):
    """The values of `output_config.effort`."""

    low: Support
    medium: Support
    high: Support
    xhigh: Support
    max: Support


class ServerTools(Support):
    code_execution: Support = NO
    web_search: Support = NO


class ModelAbilities(Wire):
    batch: Support = Field(NO, description="of /v1/messages/batches, which is not served; /v1/batches is OpenAI's")
    citations: Support = NO
    code_execution: Support = NO
    context_management: Support = NO
    effort: EffortSupport
    image_input: Support = NO
    pdf_input: Support = NO
    server_tools: ServerTools = ServerTools(supported=False)
    structured_outputs: Support
    thinking: ThinkingSupport


class ModelInfo(Wire):
    id: str
    type: Literal["model"] = "model"
    display_name: str
    created_at: str = Field(description="when the server started, as RFC 3339 has it")
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None = Field(description="limit of prompt and answer together; null where an upstream does not say it")
    max_tokens: int | None = Field(description="the same")
    capabilities: ModelAbilities | None = Field(description="null for a model of an upstream")


class ModelInfoList(Wire):
    data: list[ModelInfo]
    has_more: Literal[False] = Field(False, description="all models are on one page")
    first_id: str | None
    last_id: str | None
