"""A judge's endpoint for tests. It answers as OpenAI's API does; the types of the client check both sides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pydantic
import werkzeug
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from werkzeug.serving import make_server

KEY = "sk-secret-of-the-test"
Reply = Callable[[str], Any]
"""Takes the question; returns the text of the reply, or a whole response."""
_REQUEST: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(CompletionCreateParamsNonStreaming)


def completion(text: str, **changes: Any) -> dict[str, Any]:
    """The body of a response."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}
    return ChatCompletion.model_validate(body | changes, strict=True).model_dump(mode="json")


def error(status: int, message: str, **headers: str) -> werkzeug.Response:
    """A response of an error."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": None}}
    return werkzeug.Response(json.dumps(body), status, headers, mimetype="application/json")


class Stub:
    """The endpoint; `requests` holds the bodies of what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.requests, self.url = reply, [], ""

    @werkzeug.Request.application
    def __call__(self, request: werkzeug.Request) -> werkzeug.Response:
        if (request.method, request.path) != ("POST", "/v1/chat/completions"):
            return error(404, f"no {request.method} {request.path}")
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return error(401, f"Incorrect API key provided: {request.headers.get('Authorization')}")
        body = json.loads(request.get_data())
        _REQUEST.validate_python(body)
        assert set(body) <= set(CompletionCreateParamsNonStreaming.__annotations__), "an unknown key"
        self.requests.append(body)
        reply = self.reply(body["messages"][0]["content"])
        if isinstance(reply, werkzeug.Response):
            return reply
        response = reply if isinstance(reply, dict) else completion(reply)
        return werkzeug.Response(json.dumps(response), mimetype="application/json")


@contextmanager
def judge_stub(reply: Reply) -> Iterator[Stub]:
    """Serve on a free port of this machine."""
    stub = Stub(reply)
    server = make_server("127.0.0.1", 0, stub, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    stub.url = f"http://127.0.0.1:{server.port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
