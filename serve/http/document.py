"""Completes the OpenAPI document that FastAPI makes: the headers of answers, and how a key is sent. Knows no routes."""

from typing import Any

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "the key"},
    "basic": {"type": "http", "scheme": "basic", "description": "any user, and the key as password"},
}
_NUMBER = {"type": "integer", "minimum": 1, "maximum": 120}
_AFTER = {"schema": _NUMBER, "description": "seconds after which the same request may succeed"}
_AGAIN = {"schema": {"enum": ["true", "false"]}, "description": "what clients of OpenAI follow before their own rule"}
_ALWAYS = {
    "X-Request-Id": {
        "schema": {"type": "string"},
        "required": True,
        "description": "the request's own if it has one of at most 128 plain characters, otherwise a new one",
    },
    "traceparent": {"schema": {"type": "string"}, "description": "the request's own"},
}
# Paths that ask for a key, and those of them that do not.
_KEYED, _OPEN = ("/v1/", "/v2", "/sdapi/", "/internal/"), "/v2/health/"
_OF_STATUS: dict[str, dict[str, Any]] = {
    "401": {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}},
    "405": {"Allow": {"schema": {"type": "string"}, "required": True}},
    "429": {"Retry-After": {**_AFTER, "required": True}, "x-should-retry": _AGAIN},
    "500": {"x-should-retry": _AGAIN},
    "503": {"Retry-After": {**_AFTER, "required": True}, "x-should-retry": _AGAIN},
    "504": {"x-should-retry": _AGAIN},
}


def complete(document: dict[str, Any], *, keys: bool) -> None:
    """Add what FastAPI does not know, and take out its answers 422, as ours are 400. `keys`: whether one is needed."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, answer in operation["responses"].items():
                answer["headers"] = {**_ALWAYS, **_OF_STATUS.get(status, {}), **answer.get("headers", {})}
            if keys and path.startswith(_KEYED) and not path.startswith(_OPEN):
                operation["security"] = [{name: []} for name in _SECURITY]
    if keys:
        document.setdefault("components", {})["securitySchemes"] = _SECURITY
