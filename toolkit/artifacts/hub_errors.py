"""What the Hub refuses, one sentence for each kind: what is wrong, and what to do."""

from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import parse_ratelimit_headers

SHOWN = 300  # characters of what the Hub says


def of_hub(error: BaseException | None) -> BaseException | None:
    """The failure of a connection, or the Hub's answer, among an error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, HTTPError | OfflineModeIsEnabled | ConnectionError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def status_of(error: BaseException) -> int:
    """The status of the Hub's answer; 0 where none came."""
    cause = of_hub(error)
    response = getattr(cause, "response", None) if isinstance(cause, HfHubHTTPError) else None
    return 0 if response is None else int(response.status_code)


def wait_asked(response: Any) -> float:
    """Seconds that an answer asks to wait; 0 where it does not say."""
    if response is None:
        return 0
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds) + 1
    after = response.headers.get("Retry-After", "")
    return float(after) + 1 if after.isdecimal() else 0


def sentence(error: BaseException, repo: str) -> str:
    """The one sentence for a failed call about a repository."""
    cause = of_hub(error) or error
    page, login = f"{constants.ENDPOINT}/{repo}", "log in with `hf auth login`"
    said = " ".join(str(getattr(cause, "server_message", None) or cause).split())[:SHOWN]
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is sent: unset it"
    if isinstance(cause, GatedRepoError):
        return f"{repo} is gated: accept its terms at {page}, and {login}"
    if isinstance(cause, DisabledRepoError):
        return f"{repo} has been disabled by the Hub; see {page}"
    if isinstance(cause, RevisionNotFoundError):
        return f"{repo} has no such branch; see {page}/branches, or leave --revision out"
    if not isinstance(cause, HfHubHTTPError):
        if isinstance(cause, HTTPError | ConnectionError):
            return f"the connection to {constants.ENDPOINT} failed ({type(cause).__name__}): {said}"
        return f"the Hub's client gave up: {said}"
    status = status_of(cause)
    if status == 400 and type(error) is ValueError:  # what is wrong stands outside of the answer
        return f"the Hub refuses the card (400): {' '.join(str(error).split())[:SHOWN]}"
    known = {
        400: f"the Hub refuses these files (400): {said}",
        401: f"the Hub does not know you (401): {login}, with a token that may write",
        403: f"your token may not write to {repo} (403): use one with the right to write to "
        f"{repo.split('/')[0]}, or name a repository of your own",
        404: f"{repo} is not there, or your token may not see it (404): check the spelling at {page}",
        409: f"{repo} is being changed by someone else (409): repeat the push when they are done",
        412: f"{repo} is being changed by someone else (412): repeat the push when they are done",
        413: "a file or the whole is larger than the Hub takes (413): push the adapter instead of "
        "the merged model, or ask the Hub for more room",
        429: f"the Hub has had too many requests from you (429): {_until(cause)}",
    }
    if status in known:
        return known[status]
    if status >= 500:
        return f"the Hub itself is in trouble ({status}): see https://status.huggingface.co"
    return f"the Hub refuses ({status}): {said}"


def _until(cause: Any) -> str:
    seconds = wait_asked(cause.response)
    return f"wait {seconds:,.0f} s" if seconds else "wait some minutes"
