"""llama-index: OpenAILike, for servers that are not OpenAI's."""

import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from questions import CUT, ENDLESS, FORMAL, GREEDY, QUESTION, Thief

MESSAGES = [ChatMessage(role="user", content=QUESTION)]


def model(server, **fields):
    place = {"model": server.model, "api_base": server.base_url, "api_key": "none", "max_retries": 0}
    nature = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 1024}
    return OpenAILike(**place | nature | GREEDY | fields)


def weather(days: int) -> str:
    """The weather of the next days."""
    return "sun " * days


def test_a_chat(server):
    assert model(server).chat(MESSAGES).message.content == server.answer()


def test_a_stream(server):
    pieces = [chunk.delta for chunk in model(server).stream_chat(MESSAGES)]
    assert len(pieces) > 5 and "".join(pieces) == server.answer()


def test_a_tool_call(server):
    llm = model(server, **FORMAL)
    answer = llm.chat_with_tools([FunctionTool.from_defaults(fn=weather)], user_msg=QUESTION, tool_required=True)
    call = llm.get_tool_calls_from_response(answer)[0]
    assert call.tool_name == "weather" and isinstance(call.tool_kwargs["days"], int)


def test_a_form(server):
    assert isinstance(model(server, **FORMAL).as_structured_llm(Thief).complete(QUESTION).raw, Thief)


def test_an_error(server):
    """OpenAILike itself refuses this temperature."""
    with pytest.raises(openai.BadRequestError, match="top_p"):
        model(server, additional_kwargs={"top_p": 5}).chat(MESSAGES)


def test_a_cancel(server):
    stream = model(server, max_tokens=CUT, additional_kwargs={"extra_body": ENDLESS}).stream_chat(MESSAGES)
    next(stream)
    stream.close()
    assert server.cut_the_last_answer()
