"""The endpoint of the judge: one request for each comparison and order."""

import json
import os
from typing import Any

from automixalign.config.evaluation import JudgeSpec
from automixalign.scoring.judge.verdicts import PROMPT, Verdict, question, read
from automixalign.system.errors import ConfigError, UnreachableError

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the endpoint's key."""
_MISFIT = (400, 413, 422)
"""Statuses of a request that the endpoint cannot take, such as one that is too long."""


class Judge:
    """Asks an OpenAI-compatible endpoint.

    Args:
        spec: the endpoint and its model. Its key comes from `OPENAI_API_KEY`; some endpoints need none.
    """

    def __init__(self, spec: JudgeSpec) -> None:
        from openai import OpenAI

        self._spec = spec
        self._key = os.environ.get(KEY, "").strip()
        self._client = OpenAI(
            base_url=spec.base_url,
            api_key=self._key or "none",
            timeout=spec.timeout_seconds,
            max_retries=spec.retries,  # with growing waits, or as long as the endpoint's Retry-After says
        )

    def compare(self, prompt: str, first: str, second: str) -> Verdict:
        """Which of two answers is better. A request that the endpoint cannot take has no winner.

        Raises:
            UnreachableError: the endpoint does not answer after all retries.
            ConfigError: it refuses the key or does not know the model.
        """
        from openai import APIStatusError

        try:
            return self._verdict(self._ask(question(self._spec.prompt or PROMPT, prompt, first, second)))
        except APIStatusError as error:
            if error.status_code not in _MISFIT:
                raise self._explained(error) from None
            return Verdict(None, self._hidden(f"the endpoint refuses the request: {error}"))

    def check(self) -> None:
        """Check before any work that the endpoint gives verdicts, by one small question.

        Raises:
            UnreachableError, ConfigError: as for `compare`; or the reply holds no verdict.
        """
        verdict = self.compare("2+2?", "4", "5")
        if verdict.winner is None:
            raise ConfigError(
                f"the judge {self._spec.model} at {self._spec.base_url} gives no verdict on a trial question: "
                f"{verdict.reason!r:.500}; change evaluation.judge"
            )

    def _ask(self, content: str) -> bytes:
        """The body of the response.

        Raises:
            UnreachableError: the endpoint does not answer after all retries.
            openai.APIStatusError: it refuses the request.
        """
        from openai import APIConnectionError, APIError, APIStatusError

        options: dict[str, Any] = {"temperature": self._spec.temperature, "max_tokens": self._spec.max_tokens}
        try:
            # Not parsed: servers of other makes leave out fields, or return other types.
            response = self._client.chat.completions.with_raw_response.create(
                model=self._spec.model,
                messages=[{"role": "user", "content": content}],
                **{name: value for name, value in options.items() if value is not None},
            )
        except APIStatusError:
            raise
        except APIError as error:
            cause = error.__cause__ if isinstance(error, APIConnectionError) else None
            raise UnreachableError(
                self._hidden(
                    f"the judge at {self._spec.base_url} does not answer: {cause or error}; start it, or "
                    "change evaluation.judge"
                )
            ) from None
        return response.http_response.content

    def _verdict(self, body: bytes) -> Verdict:
        """The verdict in the body of a response; without a text, it has no winner."""
        text = body.decode(errors="replace")
        try:
            choice = json.loads(text)["choices"][0]
            content = choice["message"].get("content") or ""
            parts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
            reply = "".join(parts)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Verdict(None, self._hidden(f"this is no chat completion: {text}"))
        if not reply.strip():
            return Verdict(None, f"no text; finish_reason is {choice.get('finish_reason')!r:.100}")
        return read(reply)

    def _explained(self, error: Any) -> ConfigError | UnreachableError:
        answer = self._hidden(f"the judge at {self._spec.base_url} answers {error.status_code}: {error}")
        if error.status_code >= 500 or error.status_code in (408, 409, 429):
            return UnreachableError(f"{answer}; try again later, or change evaluation.judge")
        advice = f"check the key in {KEY}" if error.status_code in (401, 403) else "check evaluation.judge"
        return ConfigError(f"{answer}; {advice}")

    def _hidden(self, text: str) -> str:
        """A text for messages and files: without the key, and not longer than a paragraph."""
        return (text.replace(self._key, "***") if self._key else text)[:1000]
