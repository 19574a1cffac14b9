"""The sampling parameters of a request that names none: each is the setting's, else the model's own, else llama-server's.

Knows no request and no weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from app.engine.request import SamplingParams
from app.errors import SetupError
from app.schemas import SamplingParameters
from app.settings import SamplingSettings

# What llama-server samples with where neither a request nor the model says anything.
LLAMA_SERVER = SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)


def default_sampling(settings: SamplingSettings, own: Mapping[str, Any]) -> SamplingParams:
    """`own` is what the model's generation_config.json says, or its GGUF file. `do_sample` in it is ignored, as by vLLM and llama.cpp:
    clients of OpenAI's API expect sampling unless they send temperature 0.

    Raises `SetupError` for a value of the model that no request may have, unless a setting replaces it.
    """
    names = [name for name in SamplingParameters.model_fields if own.get(name) is not None and getattr(settings, name) is None]
    try:
        parameters = SamplingParameters.model_validate({name: own[name] for name in names})
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        raise SetupError(
            f"the model's own default of {name} is {first['input']!r} (generation_config.json, or general.sampling of a GGUF file): "
            f"{first['msg'].lower()}; the setting model.sampling.{name} replaces it"
        ) from error
    return with_parameters(with_parameters(LLAMA_SERVER, parameters), settings)


def with_parameters(sampling: SamplingParams, parameters: SamplingParameters) -> SamplingParams:
    """`sampling` with the parameters that are given."""
    given: dict[str, Any] = {name: value for name in SamplingParameters.model_fields if (value := getattr(parameters, name)) is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    return replace(sampling, **given)
