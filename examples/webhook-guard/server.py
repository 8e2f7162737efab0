"""A guard for extproc in one file, with nothing but Python's standard library: see README.md beside it.

It refuses texts with words that are not allowed, and masks e-mail addresses.
"""

from __future__ import annotations

import argparse
import hmac
import json
import logging
import os
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY = 4 * 1024 * 1024
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")


def decide(question: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """The answer to a question of version 1. Raises KeyError or TypeError for what is none."""
    texts = [(text["index"], text["text"]) for text in question["texts"]]
    for index, text in texts:
        for word in words:
            if word.lower() in text.lower():
                # The reason is for a log: it says which rule it was, and not what the text says.
                return {"decision": "deny", "reason": f"text {index} has a word of the list", "message": "Not here."}
    masked = [(index, text, EMAIL.sub("[e-mail]", text)) for index, text in texts]
    changed = [{"index": index, "text": after} for index, before, after in masked if after != before]
    return {"decision": "replace", "texts": changed} if changed else {"decision": "allow"}


class Guard(ThreadingHTTPServer):
    """Answers questions by `decide`; with a token, only to those who know it."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], words: list[str], token: str | None) -> None:
        super().__init__(address, Handler)
        self.words = words
        self.token = token


class Handler(BaseHTTPRequestHandler):
    """One connection, which is kept: extproc asks over it again."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True
    server: Guard

    def do_POST(self) -> None:
        """A question."""
        if not self._known():
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE if length.isdecimal() else HTTPStatus.LENGTH_REQUIRED)
            return
        try:
            question = json.loads(self.rfile.read(int(length)))
            if question["version"] != 1:
                raise ValueError("another version")
            answer = decide(question, self.server.words)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        logging.info("%s: %s", question.get("request_id"), answer["decision"])
        self._answer(HTTPStatus.OK, json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: decisions are logged."""

    def _known(self) -> bool:
        token = self.server.token
        if token is None:
            return True
        given = self.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True  # the body was not read
        self._answer(status, b"{}")

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081, help="0: any that is free")
    parser.add_argument("--deny", metavar="WORD", action="append", default=[], help="refuse texts with it; repeatable")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with Guard((options.host, options.port), options.deny, os.environ.get("GUARD_TOKEN") or None) as server:
        logging.info("listening on http://%s:%d", *server.server_address[:2])
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            logging.info("stopped")


if __name__ == "__main__":
    main()
