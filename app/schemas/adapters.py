"""Bodies of vLLM's routes that load and unload LoRA adapters."""

from pydantic import ConfigDict, Field

from app.models.names import MODEL_NAME
from app.schemas.wire import Wire


class UnloadAdapterRequest(Wire):
    lora_name: str = Field(pattern=MODEL_NAME, description="the adapter's name in the API")

    model_config = ConfigDict(json_schema_extra={"examples": [{"lora_name": "pirate"}]})


class LoadAdapterRequest(Wire):
    lora_name: str = Field(pattern=MODEL_NAME, description="the adapter's name in the API, as that of a model")
    lora_path: str = Field(
        min_length=1, description="folder or hub name of the adapter as peft saves it, in one of the places of security.model_paths"
    )
    model: str | None = Field(None, description="name of its base; the default model when left out")

    model_config = ConfigDict(json_schema_extra={"examples": [{"lora_name": "pirate", "lora_path": "adapters/pirate"}]})
