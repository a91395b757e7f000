"""The few parts of Flask that flask_app.py and its test use, for where Flask is not installed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any


class _Request:
    files: dict[str, io.BytesIO] = {}


class Response:
    def __init__(self, text: str) -> None:
        self.text, self.status_code = text, 200

    def get_json(self) -> Any:
        return json.loads(self.text)


class _Client:
    def __init__(self, routes: dict[tuple[str, str], Callable[[], Response]]) -> None:
        self._routes = routes

    def post(self, path: str, data: dict[str, tuple[io.BytesIO, str]]) -> Response:
        request.files = {name: file for name, (file, _) in data.items()}
        return self._routes["POST", path]()


class Flask:
    def __init__(self, name: str) -> None:
        self.name = name
        self._routes: dict[tuple[str, str], Callable[[], Response]] = {}

    def route(self, path: str, methods: tuple[str, ...] = ("GET",)) -> Callable[[Callable], Callable]:
        def add(view: Callable[[], Response]) -> Callable[[], Response]:
            self._routes.update({(method, path): view for method in methods})
            return view

        return add

    def test_client(self) -> _Client:
        return _Client(self._routes)


def jsonify(value: Any) -> Response:
    return Response(json.dumps(value))


request = _Request()
