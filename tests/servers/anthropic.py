"""The scripted model behind Anthropic's Messages API; streams are not spoken.

Errors have Anthropic's shape: `{"type": "error", "error": {"type": …, "message": …}}`, with the types of its
documentation (platform.claude.com, API reference, "Errors").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from tests.servers.model import ModelRequest, Reply, ScriptedModel, Status, retry_header, text_of

OVERLOADED: Final = Status(529, "Overloaded")
TOO_LONG: Final = Status(400, "prompt is too long: 200001 tokens > 200000 maximum")
_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
_SAMPLING: Final = {"temperature", "top_p", "top_k"}
"""Refused since the API's version 2026-10-21."""
_ERRORS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(eq=False)
class ScriptedAnthropic(ScriptedModel):
    """As `ScriptedModel`; `looked_up` are the paths of the requests about models, in order."""

    models: tuple[str, ...] = ("claude-test",)
    looked_up: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return super().url.removesuffix("/v1")

    def _route(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/models", self._list_models)
        router.add_get("/v1/models/{name:.+}", self._show_model)
        router.add_post("/v1/messages", self._chat)

    def _key_of(self, request: web.Request) -> str:
        return request.headers.get("X-Api-Key") or super()._key_of(request)

    async def _list_models(self, request: web.Request) -> web.Response:
        self.looked_up.append(request.raw_path)
        return web.json_response({"data": [self._model(name) for name in self.models], "has_more": False})

    async def _show_model(self, request: web.Request) -> web.Response:
        self.looked_up.append(request.raw_path)
        return await super()._show_model(request)

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        if "anthropic-version" not in http.headers:
            return self._error(Status(400, "anthropic-version: header is required"))
        return await super()._chat(http)

    async def _reply(self, reply: Reply, request: ModelRequest, http: web.Request) -> web.StreamResponse:
        text = self.answer(request) if reply.text is None else reply.text
        if "max_tokens" not in request.body:
            return self._error(Status(400, "max_tokens: Field required"))
        if request.body.keys() & _SAMPLING:
            return self._error(Status(400, "temperature: Extra inputs are not permitted"))
        if reply.gate is not None:
            await reply.gate.wait()
        message = {"id": f"msg_{request.number}", "type": "message", "role": "assistant", "stop_sequence": None}
        content = [{"type": "text", "text": text}] if text else []
        message |= {"model": request.body["model"], "stop_reason": _STOP_REASONS[reply.finish_reason]}
        return web.json_response(message | {"content": content, "usage": _usage(request, text)})

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "type": "model", "display_name": name, "created_at": "2026-01-01T00:00:00Z"}

    def _no_such_model(self, name: str) -> web.Response:
        return self._error(Status(404, f"model: {name}"))

    def _error(self, refusal: Status) -> web.Response:
        kind = _ERRORS.get(refusal.status, "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": refusal.message}, "request_id": "req_test"}
        return web.json_response(body, status=refusal.status, headers=retry_header(refusal))


def system_of(request: ModelRequest) -> str:
    """The text of the request's system prompt, which is a string or a list of blocks."""
    return text_of({"content": request.body.get("system", "")})


def _usage(request: ModelRequest, reply: str) -> dict[str, int]:
    """Token counts as if each word were one token."""
    asked = [system_of(request), *(text_of(message) for message in request.messages)]
    return {"input_tokens": sum(len(text.split()) for text in asked), "output_tokens": len(reply.split())}
