"""A Jinja template as transformers understands it, and the file of one that takes the place of a model's own. Knows no model."""

import re
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError

from app.errors import SetupError, first_line

GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # transformers' own: what the model is trained to write


def compiler() -> Environment:
    """What understands a template as transformers does, which renders it."""
    return Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])


def without_generation_tags(template: str) -> str:
    """The same on as many lines."""
    return GENERATION_TAG.sub(lambda tag: "\n" * tag[0].count("\n"), template)


def read_template(path: str, setting: str = "chat_template") -> str:
    """The chat template in a file. Raises `SetupError`, with the line, for what is none."""
    try:
        template = Path(path).read_text(encoding="utf-8")
        compiler().from_string(without_generation_tags(template))
    except OSError as error:
        raise SetupError(f"{setting}: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{setting}: {path} is not text in UTF-8") from error
    except TemplateSyntaxError as error:
        raise SetupError(f"{setting}: {path}, line {error.lineno}: {first_line(error)}") from error
    if not template.strip():
        raise SetupError(f"{setting}: {path} is empty, so that every prompt would be")
    return template
