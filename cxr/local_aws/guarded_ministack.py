"""`python -m cxr.guarded_ministack`: MiniStack for programs here, and for no web page open in a browser here.

MiniStack itself answers any Host and any Origin, asks for no credentials and runs what it is sent.
"""

from http import HTTPStatus
from typing import Any

from ministack import app as ministack  # type: ignore[import-untyped]

from cxr.local_aws.loopback import REFUSAL, asks_as_a_program

_answer = ministack.app


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """MiniStack's ASGI application, which gets nothing that a web page may have sent: that is a 403."""
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope.get("headers", [])]
    if scope["type"] == "lifespan" or asks_as_a_program(headers):
        await _answer(scope, receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close"})  # before it is accepted, the server makes it a 403
    else:
        await send({"type": "http.response.start", "status": HTTPStatus.FORBIDDEN, "headers": []})
        await send({"type": "http.response.body", "body": REFUSAL})


if __name__ == "__main__":
    ministack.app = app  # which `main` serves
    ministack.main()
