"""`python -m cxr.local_aws.guarded_ministack`: MiniStack for programs on this machine, but for no web page.

MiniStack itself answers any Host and any Origin, needs no credentials and runs the code it is sent.
"""

from http import HTTPStatus
from typing import Any

from ministack import app as ministack  # type: ignore[import-untyped]

from cxr.local_aws import ministack_lambda, ministack_network
from cxr.local_aws.loopback import REFUSAL, is_from_a_program

_answer = ministack.app


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """MiniStack's ASGI application. It answers 403 to requests that may come from a web page."""
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope.get("headers", [])]
    if scope["type"] == "lifespan" or is_from_a_program(headers):
        await _answer(scope, receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close"})  # before it is accepted: the server answers 403
    else:
        await send({"type": "http.response.start", "status": HTTPStatus.FORBIDDEN, "headers": []})
        await send({"type": "http.response.body", "body": REFUSAL})


if __name__ == "__main__":
    ministack_lambda.install()
    ministack_network.install()
    ministack.app = app  # `main` serves it
    ministack.main()
