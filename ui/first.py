"""What the browser shows until Gradio's scripts are there and show that they load: seconds, where network or machine are slow."""

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

# In colours of Gradio's first style sheet, which follow dark mode. It takes no room, so that nothing moves when it goes.
LINE = (
    b'<style>body:not(:has(gradio-app *))::before { content: "Litmus is loading\\2026"; position: fixed; inset: 0; display: grid; '
    b"place-items: center; }</style>"
)
HEAD = b"<head>"


def with_loading_line(send: Send) -> Send:
    """Puts the line into the head of the HTML that goes through `send`."""
    start: list[Message] = []  # held until the length of the body is known

    async def send_page(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.append(message)
            return
        if start:
            first = start.pop()
            headers = MutableHeaders(scope=first)
            body = message.get("body", b"")
            if headers.get("content-type", "").startswith("text/html") and HEAD in body and "content-encoding" not in headers:
                message = {**message, "body": body.replace(HEAD, HEAD + LINE, 1)}
                if "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(LINE))
            await send(first)
        await send(message)

    return send_page
