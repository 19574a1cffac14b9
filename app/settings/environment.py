"""The environment of our processes: what libraries are to find there. Knows no setting."""

import os

ENVIRONMENT = {
    "GOMP_SPINCOUNT": "3000",  # how often a thread that waits for others looks before it sleeps; GCC's 300,000 take cores from neighbours
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",  # otherwise Gradio builds a table of the last 10,000 events at each event
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",  # it advises to install torch where the API process hides it
    "TRITON_CACHE_DIR": "~/.cache/litmus/triton",  # where what it compiled for CUDA stays; else it makes ~/.triton
}


def prepare_environment() -> None:
    """Sets environment variables that turn off the libraries' telemetry and bound what they take of the machine. A value set by the user
    stays. Call it before anything that imports torch.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, os.path.expanduser(value))


def offline_environment() -> dict[str, str]:
    """The environment for a process of ours that must not ask the hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}
