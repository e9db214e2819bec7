"""What goes wrong with a request, in the form of OpenAI's API."""

from __future__ import annotations

import math
from typing import Any

from pydantic import ValidationError

MAX_PROBLEMS = 3
"""Most problems of a request that an error names."""


class ApiError(Exception):
    """A request is refused or failed; `body` is what its client is sent."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        run_id: str | None = None,
    ) -> None:
        """Describe it.

        Args:
            status: The HTTP status.
            message: What is wrong, and what would be right, for anyone to read.
            code: The same for programs; the `reason` of a refusal in the metrics.
            param: The field of the request that is wrong.
            retry_after_s: When it can be tried again.
            run_id: The run that it ended; a client must not ask again by itself then, as the run may have cost money.
        """
        super().__init__(message)
        self.status, self.code = status, code
        self._message, self._param, self._run_id, self._retry_after_s = message, param, run_id, retry_after_s

    @property
    def has_run(self) -> bool:
        """Whether it ended a run, and did not refuse to begin one."""
        return self._run_id is not None

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        error = {"message": self._message, "type": _kind(self.status), "param": self._param, "code": self.code}
        return {"error": error if self._run_id is None else {**error, "router_r1": {"run_id": self._run_id}}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to it."""
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self._retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self._retry_after_s)))
        if self._run_id is not None:
            headers["x-should-retry"] = "false"  # OpenAI's clients heed it, and would else repeat a run
        return headers


def _kind(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _:
            return "server_error" if status >= 500 else "invalid_request_error"


def invalid(message: str, param: str | None = None) -> ApiError:
    """Return the error of a request that can't be understood."""
    return ApiError(400, message, "invalid_request", param=param)


def invalid_fields(error: ValidationError) -> ApiError:
    """Return the error of a request with wrong fields; their values are not shown."""
    problems = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors(include_input=False)]
    message = "; ".join(f"{field[:100] or 'the body'}: {what[:300]}" for field, what in problems[:MAX_PROBLEMS])
    return invalid(message, problems[0][0][:100] or None)
