"""What providers' exceptions mean, in words fit for anyone to read: their own may hold keys."""

from __future__ import annotations

import re

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)

_FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (ModelRateLimitError, "is rate limited (429)"),
    (ModelAuthenticationError, "refused its key (401)"),
    (ModelPermissionDeniedError, "does not permit the request (403)"),
    (ModelNotFoundError, "is not there (404)"),
    (ContextOverflowError, "has too short a context for the query"),
    (ModelInvalidRequestError, "rejected the request (400)"),
    (ModelAPIError, "had a server error (5xx)"),
    (ModelTimeoutError, "gave no reply in time"),
    (TimeoutError, "gave no reply in time"),
    (ModelConnectionError, "can't be reached"),
    (ImportError, "needs a LangChain package that is not installed"),
)

_KEY_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9_]{1,40}_(?:KEY|TOKEN)\b")

_UNKNOWN_PROVIDER = re.compile(r"Unsupported provider|Unsupported model_provider|Unable to infer model provider")


def failure(error: BaseException) -> str:
    """Return what went wrong, as the end of a sentence that begins with the model's name.

    Example:
        >>> failure(ValueError("key sk-123"))
        'failed (ValueError)'
    """
    for kind, words in _FAILURES:
        if isinstance(error, kind):
            return words
    said = str(error)
    # LangChain's own words, before any key is read.
    if isinstance(error, ValueError) and _UNKNOWN_PROVIDER.search(said):
        return "names no provider that LangChain knows; a name is PROVIDER:MODEL, such as openai:gpt-4o-mini"
    # The words of a package that misses a key, and not those of a server: names of variables are no secret.
    if not hasattr(error, "response") and (variables := sorted(set(_KEY_VARIABLE.findall(said)))):
        return f"failed ({type(error).__name__}): is {' or '.join(variables)} set in the environment?"
    return f"failed ({type(error).__name__})"
