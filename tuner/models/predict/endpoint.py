"""Requests → answers, by a server that speaks OpenAI's chat completions: the one that `serve` starts, or any.

The server writes the conversation in its own chat template. A key, where it asks for one, is taken from
OPENAI_API_KEY. What fails for a moment is asked again.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from itertools import islice
from typing import Any

from tuner.data.conversation import Conversation, Message
from tuner.errors import ConfigError, StageError
from tuner.models.predict.journal import Journal
from tuner.models.predict.local import Bar, Decoding
from tuner.models.predict.requests import Request

TOGETHER = 16
"""requests that are under way at once"""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""seconds before each new attempt"""
TIMEOUT = 600.0
"""seconds that a server may take for an answer"""
TRANSIENT = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
"""statuses that may be others in a moment"""
MISTAKES = frozenset((401, 403, 404, 405))
"""statuses that every request would get"""


class EndpointModel:
    """A model behind an address, such as http://127.0.0.1:8000/v1."""

    def __init__(self, address: str, name: str | None, decoding: Decoding) -> None:
        self._address, self._decoding = address.rstrip("/"), decoding
        self.name = name or self._first_model()
        """as the server calls it"""

    def _first_model(self) -> str:
        found = self._ask("models", None)
        try:
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ConfigError(
                f"{self._address}/models names no model. Name the one that is meant: predict.model=NAME"
            ) from None

    def answer_all(
        self, model: str, requests: Mapping[int, Request], journal: Journal, bar: Bar, together: int | None
    ) -> None:
        """Answer the requests that the journal does not hold yet, `together` at once, and enter them as
        `model`'s, each as it comes. Raises ConfigError and StageError where the server refuses or is gone.
        """
        known = journal.answers.get(model, {})
        rest = iter([(row, request) for row, request in requests.items() if row not in known])
        many = together or TOGETHER
        with ThreadPoolExecutor(many) as threads:
            while part := list(islice(rest, 4 * many)):  # what is under way when it fails is not lost
                asked = {threads.submit(self._answer, row, request): row for row, request in part}
                try:
                    for done in as_completed(asked):
                        journal.add(model, {asked[done]: (answer := done.result())})
                        bar(rows=1, tokens=answer.get("tokens", 0))
                except BaseException:
                    for future in asked:
                        future.cancel()
                    raise

    def _answer(self, row: int, request: Request) -> dict[str, Any]:
        if request.conversation is None:
            return {"reason": "a plain text is not asked of a chat endpoint"}
        decoding = self._decoding
        body: dict[str, Any] = {
            "model": self.name,
            "messages": openai_messages(request.conversation),
            "max_tokens": decoding.most,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": (decoding.seed + row) % (1 << 31),
        }
        if request.conversation.tools:
            body["tools"] = list(request.conversation.tools)
        if decoding.logprobs:
            body["logprobs"] = True
        found = self._ask("chat/completions", body)
        if "reason" in found:
            return found
        try:
            choice = found["choices"][0]
            message = choice["message"]
            text = message.get("content") or ""
            if calls := message.get("tool_calls"):
                text += json.dumps([call["function"] for call in calls], ensure_ascii=False)
            told = {
                "text": text,
                "ended": "length" if choice.get("finish_reason") == "length" else "end",
                "tokens": (found.get("usage") or {}).get("completion_tokens", 0),
            }
            if decoding.logprobs:
                told["logprobs"] = [token["logprob"] for token in choice["logprobs"]["content"]]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise StageError(
                f"{self._address}/chat/completions answers with something else than a chat completion"
                f"{' with logprobs' if decoding.logprobs else ''}."
            ) from None
        return told

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """The server's answer, or {"reason": …} where it refuses this request alone."""
        url = f"{self._address}/{path}"
        head = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            head["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        why = ""
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            try:
                asked = urllib.request.Request(url, data=data, headers=head)
                with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
                    value = json.load(answer)
                    return value if isinstance(value, dict) else {}
            except urllib.error.HTTPError as error:
                said = _said(error)
                if error.code in MISTAKES:
                    raise ConfigError(f"{url} answers with the status {error.code}{said}") from None
                if error.code not in TRANSIENT:
                    return {"reason": f"the endpoint answers with the status {error.code}{said}"}
                why = f"it answers with the status {error.code}{said}"
            except (OSError, HTTPException) as error:
                why = str(getattr(error, "reason", error))
            except ValueError:
                why = "its answer is no JSON"
        raise StageError(
            f"{url} was asked {len(PAUSES) + 1} times: {why}. When it is there again, the same command goes "
            "on."
        )


def _said(error: urllib.error.HTTPError) -> str:
    """What a server says with a status, as a clause."""
    try:
        told = json.loads(error.read())
        inner = told.get("error", told)
        return f": {str(inner.get('message', inner))[:300]}"
    except (ValueError, OSError, AttributeError):
        return ""


def openai_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Turns as OpenAI's API takes them."""
    return [_message(message, place) for place, message in enumerate(conversation.messages)]


def _message(message: Message, place: int) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        told["reasoning_content"] = message.reasoning
    if message.calls:
        told["tool_calls"] = [
            {
                "id": call.id or f"call_{place}_{number}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for number, call in enumerate(message.calls)
        ]
    if message.role == "tool":
        told["tool_call_id"] = message.call_id or f"call_{place - 1}_0"
        if message.name:
            told["name"] = message.name
    return told
