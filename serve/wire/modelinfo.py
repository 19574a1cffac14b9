"""The card of a model as Anthropic's clients read it. Knows no route."""

from collections.abc import Sequence

from app.schemas import ModelCard
from app.schemas.modelinfo import EffortSupport, ModelAbilities, ModelInfo, ModelInfoList, Support, ThinkingSupport, ThinkingTypes
from app.tokenizer import ChatTemplate


def info_of(card: ModelCard, chat: ChatTemplate | None) -> ModelInfo:
    """`chat` is the model's chat template, or None for a model of an upstream."""
    return ModelInfo(
        id=card.id,
        display_name=card.display_name or card.id,
        created_at=card.created_at or "",
        max_input_tokens=card.context,
        max_tokens=card.context,
        capabilities=None if chat is None else abilities_of(card, chat),
    )


def list_of(infos: Sequence[ModelInfo]) -> ModelInfoList:
    first, last = (infos[0].id, infos[-1].id) if infos else (None, None)
    return ModelInfoList(data=[*infos], first_id=first, last_id=last)


def abilities_of(card: ModelCard, chat: ChatTemplate) -> ModelAbilities:
    has_switch, has_effort = chat.thinking_switch is not None, chat.uses("reasoning_effort")
    thinks = Support(supported=chat.reasoning is not None or has_switch)
    can_be_told_not_to = Support(supported=has_switch or has_effort or not thinks.supported)
    effort = Support(supported=has_effort)
    return ModelAbilities(
        structured_outputs=Support(supported="structured_output" in card.capabilities),
        effort=EffortSupport(supported=has_effort, low=effort, medium=effort, high=effort, xhigh=effort, max=effort),
        thinking=ThinkingSupport(
            supported=thinks.supported,
            types=ThinkingTypes(adaptive=thinks, enabled=thinks, disabled=can_be_told_not_to),
        ),
    )
