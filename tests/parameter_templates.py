"""Models whose chat templates write the arguments of a tool call one by one.

The templates are short, in the documented forms of Qwen3-Coder, GLM 4.6, MiniMax M2 and Olmo 3.
"""

import json
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from app.forms.learning import learn_tool_format
from app.forms.parameters import ParameterFormat
from app.forms.tools import AddedTokens, ToolFormat, ToolsUnsupported

BEGIN = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for k, v in c.function.arguments | items %}"
JSON = "{{ v if v is string else v | tojson }}"
PYTHON = "{% if v is string %}'{{ v }}'{% else %}{{ v | tojson }}{% endif %}"
QWEN = (
    BEGIN + "{% for c in m.tool_calls or [] %}{{ '\n' }}<tool_call>\n<function={{ c.function.name }}>\n"
    f"{EACH}<parameter={{{{ k }}}}>\n{JSON}\n</parameter>\n{{% endfor %}}</function>\n</tool_call>{{% endfor %}}" + END
)
GLM = (
    BEGIN + "{% for c in m.tool_calls or [] %}{{ '\n' }}<tool_call>{{ c.function.name }}\n"
    f"{EACH}<arg_key>{{{{ k }}}}</arg_key>\n<arg_value>{JSON}</arg_value>\n{{% endfor %}}</tool_call>{{% endfor %}}" + END
)
MINIMAX = (
    BEGIN + "{% for c in m.tool_calls or [] %}{% if loop.first %}<calls>\n{% endif %}"
    f'<invoke name="{{{{ c.function.name }}}}">\n{EACH}<parameter name="{{{{ k }}}}">{JSON}</parameter>\n{{% endfor %}}</invoke>\n'
    "{% if loop.last %}</calls>{% endif %}{% endfor %}" + END
)
OLMO = (
    BEGIN + "{% for c in m.tool_calls or [] %}{% if loop.first %}<function_calls>\n{% endif %}{{ c.function.name }}("
    f"{EACH}{{{{ k }}}}={PYTHON}{{% if not loop.last %}}, {{% endif %}}{{% endfor %}})\n"
    "{% if loop.last %}</function_calls>{% endif %}{% endfor %}" + END
)
# As the cards of LFM2.5, Llama 4 and DeepSeek V3.2 have it.
LFM = (
    BEGIN + "{% for c in m.tool_calls or [] %}{{ '<|tool_call_start|>[' if loop.first else ', ' }}{{ c.function.name }}("
    f"{EACH}{{{{ k }}}}={{% if v is string %}}'{{{{ v }}}}'{{% elif v is mapping %}}{{{{ v | tojson }}}}{{% else %}}{{{{ v | string }}}}"
    "{% endif %}{% if not loop.last %}, {% endif %}{% endfor %}){% if loop.last %}]<|tool_call_end|>{% endif %}{% endfor %}" + END
)
LLAMA = (
    BEGIN + "{% for c in m.tool_calls or [] %}{{ '[' if loop.first else ', ' }}{{ c.function.name }}("
    f'{EACH}{{{{ k }}}}="{{{{ v }}}}"{{% if not loop.last %}}, {{% endif %}}{{% endfor %}})'
    "{{ ']' if loop.last }}{% endfor %}" + END
)
DEEPSEEK = (
    BEGIN + "{% for c in m.tool_calls or [] %}{% if loop.first %}{{ '\n\n' }}<｜DSML｜function_calls>\n{% endif %}"
    f'<｜DSML｜invoke name="{{{{ c.function.name }}}}">\n{EACH}<｜DSML｜parameter name="{{{{ k }}}}" '
    f"string=\"{{{{ 'true' if v is string else 'false' }}}}\">{JSON}</｜DSML｜parameter>\n{{% endfor %}}</｜DSML｜invoke>\n"
    "{% if loop.last %}</｜DSML｜function_calls>{% endif %}{% endfor %}" + END
)
TEMPLATES = {"qwen": QWEN, "glm": GLM, "minimax": MINIMAX, "olmo": OLMO, "lfm": LFM, "llama": LLAMA, "deepseek": DEEPSEEK}
VISIBLE = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "｜DSML｜")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|tool_call_start|>", "<|tool_call_end|>")
RING: dict[str, Any] = {
    "type": "object",
    "properties": {
        "why": {"type": "string", "description": "a reason"},
        "times": {"type": "integer", "minimum": 0, "maximum": 99},
        "who": {"type": "array", "items": {"$ref": "#/$defs/animal"}, "maxItems": 2},
        "tone": {"enum": ["low", "high"]},
    },
    "required": ["why", "tone"],
    "$defs": {"animal": {"enum": ["fox", "crow"]}},
}
TOOLS: dict[str, Any] = {"ring": RING, "ring_off": {"type": "object", "properties": {}}}


def written_value(format: ParameterFormat, schema: dict[str, Any], value: Any) -> str:
    """As the grammar has it: texts and words by the template's form, all else as JSON."""
    if format.is_raw(schema):
        return str(value)
    if format.quote == "'" and isinstance(value, str):
        return "'" + json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"
    return str(value) if format.python and isinstance(value, bool) else json.dumps(value)


class Model:
    def __init__(self, base: PreTrainedTokenizerFast, name: str) -> None:
        self.base, self.guidance = base, from_tokenizer(base)
        ids = {token.content: id for id, token in base.added_tokens_decoder.items()}
        self.added = AddedTokens(ids, frozenset(ids) - frozenset(VISIBLE), frozenset({"<|im_end|>"}))
        self.template, self._render = TEMPLATES[name], partial(base.apply_chat_template, tokenize=False)
        learned = self.learn()
        assert isinstance(learned, ToolFormat), learned
        self.format = learned

    def learn(self) -> ToolFormat | ToolsUnsupported:
        return learn_tool_format(self.turn, self.added)

    def turn(self, messages: Sequence[dict[str, Any]], tools: Any = None, prompt: bool = False, template: str | None = None) -> str:
        return str(self._render(list(messages), tools=tools, add_generation_prompt=prompt, chat_template=template or self.template))

    def write(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
        """An answer with these calls, as the grammar and the template have it; only texts of free form stand in it as they are."""
        format, parameters = self.format, self.format.parameters
        assert parameters is not None and format.between_calls is not None
        written = []
        for name, arguments in calls:
            schemas = TOOLS[name]["properties"]
            values = [
                f"{parameters.before_key}{key}{parameters.before(schemas[key])}{written_value(parameters, schemas[key], value)}"
                for key, value in arguments.items()
            ]
            inside = parameters.between.join(value + parameters.after_value for value in values)
            written.append(name + format.before_arguments[0] + inside)
        return format.before_name + format.between_calls[0].join(written) + format.after_calls[0]

    def allows(self, grammar: str, text: str) -> bool:
        matcher = LLMatcher(self.guidance, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.base.encode(text, add_special_tokens=False)
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())

    def random_answer(self, grammar: str, rng: random.Random) -> str:
        matcher, ids = LLMatcher(self.guidance, grammar, log_level=0), list[int]()
        parameters = self.format.parameters
        assert parameters is not None
        closing = self.base.encode(parameters.quote or parameters.after_value, add_special_tokens=False)
        while not (matcher.is_accepting() and ids):
            if rng.random() < 0.1 and matcher.validate_tokens(closing) == len(closing) > 0:
                matcher.consume_tokens(closing)
                ids += closing
                continue
            mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            ids.append(int(rng.choice(np.flatnonzero(mask))))
            assert matcher.consume_token(ids[-1]) and len(ids) < 3000
        return str(self.base.decode(ids))
