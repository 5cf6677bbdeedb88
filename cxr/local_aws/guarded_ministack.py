"""`python -m cxr.local_aws.guarded_ministack PID`: MiniStack for programs on this machine, not for web pages.

MiniStack itself answers any Host and any Origin, needs no credentials and runs the code it is sent. Here it
also ends with its parent process PID, and does what `ministack_*.py` add.
"""

import os
import shutil
import signal
import sys
import threading
import time
from http import HTTPStatus
from typing import Any

from ministack import app as ministack  # type: ignore[import-untyped]

from cxr.local_aws import ministack_cloudformation, ministack_kinesis, ministack_lambda, ministack_network
from cxr.local_aws.loopback import REFUSAL, is_from_a_program

LOOK_SECONDS = 0.5

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


def end_with(parent: int) -> None:
    """When the parent process was killed, delete its temporary folder, TMPDIR, and end this process."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # with the functions that MiniStack runs


if __name__ == "__main__":
    threading.Thread(target=end_with, args=[int(sys.argv.pop())], daemon=True).start()
    ministack_kinesis.install()
    ministack_cloudformation.install()
    ministack_lambda.install()
    ministack_network.install()
    ministack.app = app  # `main` serves it
    ministack.main()
