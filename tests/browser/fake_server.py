# ruff: noqa: E501  (canned answers are kept on one line)
"""A loopback stand-in for `fourbee serve`, just large enough to exercise the page.

The last user message chooses the scenario ("slow", "error frame", ...; see `SCENARIOS`), the
attributes of `FakeServer` choose the server's state (`loading`, `key`, `embedded`), and `requests`
records every chat request, so that a test can check what the page sent.

Run it by hand to look at the page: python tests/browser/fake_server.py [port]
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STATIC = Path(__file__).resolve().parents[2] / "fourbee" / "server" / "static"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

HOSTILE = (
    "<img src=x onerror=alert(1)> <script>alert(1)</script> [x](javascript:alert(1)) </textarea>"
)
FORMATTED = (
    "### Carry by carry\n\nAdd from the right, **one digit at a time**. In Python it is `347 + 285`:\n\n"
    "```python\ndef add(a: int, b: int) -> int:\n    return a + b  # <b>not bold</b>\n\nprint(add(347, 285))\n```\n\n"
    "1. 7 + 5 = 12, write 2, carry 1\n2. 4 + 8 + 1 = 13, write 3, carry 1\n3. 3 + 2 + 1 = 6\n\nThe sum is **632**."
)
ANSWERS = {
    "formatted": FORMATTED,
    "hostile": HOSTILE,
    "long word": "x" * 3000,
    "empty": "",
    "347": FORMATTED,
    "mona lisa": "I do not know that. I am a very small model: I can call tools, answer from a text you give me, and add step by step.",
    "蒙娜丽莎": "这个我不知道。我是一个很小的模型：会调用工具、根据你给的短文回答，也会逐步计算加法。",
    "你好": "你好！我是 fourbee-mini，fourbee 自带的小模型。",
    "hello": "Hello! I am fourbee-mini, the small model inside fourbee.",
}


def chunk(delta: dict | None = None, finish: str | None = None, usage: dict | None = None) -> dict:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "fourbee-mini",
        "choices": choices,
        "usage": usage,
    }


def words_of(text: str) -> list[str]:
    return [text[start : start + 5] for start in range(0, len(text), 5)]


def closing(tokens: int, finish: str = "stop") -> Iterator[dict | str]:
    yield chunk({}, finish)
    yield chunk(
        usage={"prompt_tokens": 21, "completion_tokens": tokens, "total_tokens": 21 + tokens}
    )
    yield "[DONE]"


def plain_answer(text: str, delay: float = 0.004, finish: str = "stop") -> Iterator[dict | str]:
    yield chunk({"role": "assistant", "content": ""})
    for piece in words_of(text):
        time.sleep(delay)
        yield chunk({"content": piece})
    yield from closing(max(1, len(words_of(text))), finish)


def slow_answer() -> Iterator[dict | str]:
    lines = "\n\n".join(f"Line {line} of a long answer that takes its time." for line in range(200))
    return plain_answer(lines, delay=0.01)


def error_frame() -> Iterator[dict | str]:
    yield chunk({"content": "A beginning that "})
    yield {
        "error": {
            "message": "the engine ran out of memory pages",
            "type": "capacity_error",
            "code": 503,
        }
    }
    yield "[DONE]"


def broken_stream() -> Iterator[dict | str]:
    yield chunk({"content": "Half an ans"})


def tool_call() -> Iterator[dict | str]:
    arguments = json.dumps({"expression": "347*285"})
    yield chunk(
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_7",
                    "type": "function",
                    "function": {"name": "calculator", "arguments": ""},
                }
            ]
        }
    )
    for piece in words_of(arguments):
        yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    yield from closing(18, "tool_calls")


def reasoning() -> Iterator[dict | str]:
    yield chunk({"reasoning_content": "Let me think about it."})
    yield from plain_answer("Done thinking.")


SCENARIOS = {
    "slow": slow_answer,
    "error frame": error_frame,
    "broken": broken_stream,
    "reasoning": reasoning,
    "cut": lambda: plain_answer("A text that goes on", finish="length"),
}


def answer_to(body: dict) -> Iterator[dict | str]:
    last = body["messages"][-1]
    if last["role"] == "tool":
        return plain_answer(f"347*285 = {last['content']}.")
    if body.get("tools"):
        return tool_call()
    text = last["content"].lower()
    for name, scenario in SCENARIOS.items():
        if name in text:
            return scenario()
    answer = next(
        (answer for name, answer in ANSWERS.items() if name in text),
        f"You wrote: {last['content']}",
    )
    return plain_answer(answer)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "FakeServer"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(content)

    def reply_json(self, status: int, value: object) -> None:
        self.reply(status, json.dumps(value).encode())

    def reply_error(self, status: int, message: str) -> None:
        self.reply_json(status, {"error": {"message": message, "type": "error", "code": status}})

    def refused(self) -> bool:
        """Answers for the server's state; True when the request ends here."""
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self.reply_error(401, "missing or wrong API key")
        elif self.server.loading:
            self.reply_error(503, "the model is still loading")
        else:
            return False
        return True

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply_json(
                503 if self.server.loading else 200,
                {"status": "loading" if self.server.loading else "ok"},
            )
        elif self.path == "/v1/models":
            if not self.refused():
                self.reply_json(200, {"object": "list", "data": self.server.models()})
        else:
            file = STATIC / ("index.html" if self.path == "/" else Path(self.path).name)
            if file.is_file():
                self.reply(200, file.read_bytes(), CONTENT_TYPES[file.suffix])
            else:
                self.reply_error(404, f"no such page: {self.path}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        if self.refused():
            return
        if "too long" in str(body["messages"][-1]["content"]):
            self.reply_error(400, "the prompt has 3,012 tokens; this model's context is 2,048")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self.stream(answer_to(body))
        except (BrokenPipeError, ConnectionResetError):
            self.server.aborted += 1

    def stream(self, events: Iterator[dict | str]) -> None:
        """Writes frames as real servers do, and cuts some of them at awkward bytes on purpose."""
        self.wfile.write(b": a comment\r\n\r\n")
        for number, event in enumerate(events):
            text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            end = "\r\n\r\n" if number % 2 else "\n\n"
            frame = f"data: {text}{end}".encode()
            middle = len(frame) // 2 if number % 7 == 3 else len(frame)
            for part in (frame[:middle], frame[middle:]):
                self.wfile.write(part)
                self.wfile.flush()


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.reset()

    def reset(self) -> None:
        self.loading = False
        self.key = ""
        self.embedded = True
        self.memory_bytes = 25_000_000_000
        self.requests: list[dict] = []
        self.aborted = 0

    def models(self) -> list[dict]:
        sizes = {
            "Qwen/Qwen3-0.6B": 1_200_000_000,
            "Qwen/Qwen3-4B-Instruct-2507": 8_100_000_000,
            "Qwen/Qwen3-8B": 16_400_000_000,
            "Qwen/Qwen3-14B": 29_600_000_000,
        }
        about = {
            "embedded": self.embedded,
            "parameters": 4_980_000,
            "max_context": 2048,
            "defaults": {"temperature": 0.0, "top_p": 1.0, "top_k": 0},
            "fits": [
                {"id": name, "bytes": size, "fits": size < self.memory_bytes}
                for name, size in sizes.items()
            ],
            "memory_bytes": self.memory_bytes,
        }
        name = "fourbee-mini" if self.embedded else "Qwen/Qwen3-4B-Instruct-2507"
        return [
            {"id": name, "object": "model", "created": 1, "owned_by": "fourbee", "fourbee": about}
        ]

    def start(self) -> "FakeServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


if __name__ == "__main__":
    server = FakeServer(int(sys.argv[1]) if len(sys.argv) > 1 else 8099)
    print(server.url)
    server.serve_forever()
