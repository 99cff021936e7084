"""wasi:http for components that import it: there, and every request is denied.

Toolchains import it for programs that never make a request (componentize-js does by default), so to
import is not to use. What leads up to a request is answered as for one that has neither headers nor
options; `outgoing-handler.handle` gives `HTTP-request-denied`. No byte leaves the process.
Source: https://github.com/WebAssembly/wasi-http, version 0.2, types.wit and handler.wit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from wasmtime.component import Variant

from avow.sandbox.component_functions import Failed

HANDLER: Final = "wasi:http/outgoing-handler"
TYPES: Final = "wasi:http/types"
INTERFACES: Final = frozenset({HANDLER, TYPES})
RESOURCES: Final = (
    *("fields", "incoming-request", "outgoing-request", "request-options", "response-outparam"),
    *("incoming-response", "incoming-body", "future-trailers", "outgoing-response"),
    *("outgoing-body", "future-incoming-response"),
)
ALIASES: Final = {"headers": "fields", "trailers": "fields"}
"""Second names of a resource (types.wit, `type headers = fields`): each is imported as a type of
its own, and a handle of the one is taken for one of the other."""
_DENIED: Final = Failed(Variant("HTTP-request-denied"))

Functions = Mapping[str, Callable[..., Any]]


def functions(
    own: Callable[[str, object], object], denied: Callable[[], None]
) -> Mapping[str, Functions]:
    """The functions of both interfaces, by name. `own` gives the program a handle of a resource;
    `denied` is told of each request."""

    def make(kind: str) -> Callable[..., object]:
        return lambda *_: own(kind, None)

    def handle(*_: Any) -> Failed:
        denied()
        return _DENIED

    options = ("connect-timeout", "first-byte-timeout", "between-bytes-timeout")
    return {
        HANDLER: {"handle": handle},
        TYPES: {
            "http-error-code": _nothing,
            "[constructor]fields": make("fields"),
            "[static]fields.from-list": make("fields"),
            "[method]fields.clone": make("fields"),
            **{f"[method]fields.{name}": _nothing for name in ("set", "delete", "append")},
            **{f"[method]fields.{name}": _empty for name in ("get", "entries")},
            "[method]fields.has": lambda *_: False,
            "[constructor]outgoing-request": make("outgoing-request"),
            "[method]outgoing-request.body": make("outgoing-body"),
            "[method]outgoing-request.headers": make("fields"),
            "[method]outgoing-request.method": lambda *_: Variant("get"),
            **{
                f"[method]outgoing-request.{prefix}{name}": _nothing
                for name in ("path-with-query", "scheme", "authority")
                for prefix in ("", "set-")
            },
            "[method]outgoing-request.set-method": _nothing,
            # A body has no stream: whoever wants to send one learns that here.
            "[method]outgoing-body.write": lambda *_: Failed(None),
            "[static]outgoing-body.finish": lambda *_: _DENIED,
            "[constructor]request-options": make("request-options"),
            **{
                f"[method]request-options.{prefix}{name}": _nothing
                for name in options
                for prefix in ("", "set-")
            },
        },
    }


def _nothing(*_: Any) -> None:
    """`ok` of a result without a value, and no value of an option."""


def _empty(*_: Any) -> list[Any]:
    return []
