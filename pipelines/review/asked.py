"""What a request asks, checked: JSON of bounded size, whole numbers in their range, text that is text."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from manifests.errors import UsageError

MAX_QUESTION = 16_384


def question(text: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises UsageError."""
    if len(text) > MAX_QUESTION:
        raise UsageError(f"a question has at most {MAX_QUESTION} characters")
    try:
        found = json.loads(text or "{}", parse_constant=_no_number)
        json.dumps(found, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError):
        raise UsageError("the question is no JSON") from None
    if not isinstance(found, dict):
        raise UsageError("the question must be a JSON object")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(name)


async def body(request: Request) -> str:
    """The body as text. Raises UsageError for more than a question may hold, however it comes."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > 4 * MAX_QUESTION:
            raise UsageError(f"a question has at most {MAX_QUESTION} characters")
    return content.decode(errors="replace")


def whole(asked: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    """A whole number. Raises UsageError."""
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} must be a whole number from {least} to {most}")
    return value


def flag(asked: dict[str, Any], name: str) -> bool:
    """True or false. Raises UsageError."""
    value = asked.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false")
    return value
