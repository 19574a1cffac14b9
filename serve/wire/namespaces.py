"""The functions of a body of /v1/responses, those in namespaces too: what the model calls them, and what an answer calls them.

Codex sends the tools of each MCP server as a namespace. The model reads `status` of `mcp__burp` as `mcp__burp__status`. Knows no chat.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.schemas import ResponsesRequest
from app.schemas.items import full_name
from app.schemas.messages import Function
from app.schemas.responses import FunctionTool, HostedTool, NamespaceTool

Names = Mapping[str, tuple[str, str]]  # namespace and name, by the name that the model has for them


@dataclass(frozen=True, slots=True)
class Served:
    """A function with its place in the body, such as `tools.3.tools.0`."""

    path: str
    tool: FunctionTool
    namespace: NamespaceTool | None = None

    @property
    def function(self) -> Function:
        """As the model reads it. What the namespace says of itself stands before what its first function does."""
        tool, space = self.tool, self.namespace
        name, said = tool.name, tool.description
        if space is not None:
            name = full_name(name, space.name)
            if space.description and tool is space.functions[0]:
                said = f"{space.description}\n{said or ''}".strip()
        return Function(name=name, description=said, parameters=tool.parameters, strict=tool.strict)


def functions_of(body: ResponsesRequest) -> list[Served]:
    return [Served(path, tool, space) for path, tool, space in _tools(body) if isinstance(tool, FunctionTool)]


def hosted_of(body: ResponsesRequest) -> dict[str, str]:
    """The types of the tools that are not served, by their places in the body."""
    return {path: tool.type for path, tool, _ in _tools(body) if isinstance(tool, HostedTool)}


def _tools(body: ResponsesRequest) -> Iterator[tuple[str, FunctionTool | HostedTool, NamespaceTool | None]]:
    """Each with its place in the body and its namespace."""
    for place, tool in enumerate(body.tools or ()):
        if isinstance(tool, NamespaceTool):
            yield from ((f"tools.{place}.tools.{index}", each, tool) for index, each in enumerate(tool.tools))
        else:
            yield f"tools.{place}", tool, None


def names_of(body: ResponsesRequest) -> Names:
    """Those of the functions in namespaces."""
    spaces = [tool for tool in body.tools or () if isinstance(tool, NamespaceTool)]
    return {full_name(tool.name, space.name): (space.name, tool.name) for space in spaces for tool in space.functions}


def served_tools(body: ResponsesRequest) -> list[FunctionTool | NamespaceTool]:
    """The tools without what is not served."""
    tools = [tool for tool in body.tools or () if isinstance(tool, FunctionTool | NamespaceTool)]
    return [tool if isinstance(tool, FunctionTool) else tool.model_copy(update={"tools": tool.functions}) for tool in tools]
