"""Whose the account is, and whether it may write where a recipe pushes to: asked before training."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from toolkit.artifacts.hub_commit import again
from toolkit.artifacts.hub_errors import sentence, status_of
from toolkit.artifacts.hub_names import ASKED_FOR_S
from toolkit.errors import HubError

SECONDS = 20  # for which a question is asked again: a Hub that is away is told at once


@dataclass(frozen=True)
class Target:
    """A repository that a stage will push to.

    Attributes:
        stage: the stage's name.
        repo: NAMESPACE/NAME.
        private: whether it must be private.
        checkpoints: whether what training is resumed from goes there.
    """

    stage: str
    repo: str
    private: bool = True
    checkpoints: bool = False


class Unreachable(HubError):
    """The Hub did not answer, or must not be asked."""


def account() -> Mapping[str, Any]:
    """What the Hub says of the token that is used here.

    Raises:
        Unreachable: if it cannot be asked.
        HubError: if there is no token, or the Hub does not know it.
    """
    if constants.HF_HUB_OFFLINE:
        raise Unreachable("push_to_hub: HF_HUB_OFFLINE is set, so nothing can be sent: unset it")
    if get_token() is None:
        raise HubError(
            "push_to_hub: there is no token here; log in with `hf auth login`, or set HF_TOKEN"
        )
    return _asked("your account", whoami)


def whoami() -> Mapping[str, Any]:
    """As HfApi.whoami, which waits for ever for an answer."""
    response = get_session().get(
        f"{constants.ENDPOINT}/api/whoami-v2", headers=build_hf_headers(), timeout=ASKED_FOR_S
    )
    hf_raise_for_status(response)
    return response.json()


def check_writable(targets: Sequence[Target], who: Mapping[str, Any]) -> None:
    """Refuse what would fail after training: a token that only reads, a foreign or public place.

    Args:
        targets: the repositories.
        who: what `account` gave.

    Raises:
        Unreachable: if the Hub cannot be asked.
        HubError: for the first repository that cannot be pushed to.
    """
    own = {str(who["name"]): "admin"}
    own |= {str(org["name"]): str(org.get("roleInOrg")) for org in who.get("orgs") or ()}
    for target in targets:
        namespace = target.repo.split("/")[0]
        if namespace not in own:
            raise HubError(
                f"stage {target.stage!r}: {target.repo} is in no namespace of yours "
                f"({', '.join(own)}); write hub_model_id: {next(iter(own))}/"
                f"{target.repo.split('/')[1]}"
            )
        if own[namespace] == "read" or not may_write(who, namespace):
            raise HubError(
                f"stage {target.stage!r}: your token may not write to {target.repo}; make one that "
                f"may write to {namespace} at {constants.ENDPOINT}/settings/tokens"
            )
        check_private(target)


def may_write(who: Mapping[str, Any], namespace: str) -> bool:
    """Whether a token may write into a namespace, as far as the Hub tells: False is certain."""
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") != "fineGrained":
        return token.get("role") != "read"
    fine = token.get("fineGrained") or {}
    rights = [*(fine.get("global") or ())]
    for scope in fine.get("scoped") or ():
        entity = scope.get("entity") or {}
        of_repo = entity.get("type") not in ("user", "org")
        if of_repo or entity.get("name") == namespace:
            rights += scope.get("permissions") or ()
    return any(str(right).endswith("write") for right in rights)


def check_private(target: Target) -> None:
    """Refuse a repository that is public, where what goes there is private.

    Raises:
        HubError: naming it.
    """
    if not target.private:
        return
    try:
        found = _asked(
            target.repo, lambda: HfApi().model_info(target.repo, timeout=ASKED_FOR_S)
        )  # fmt: skip
    except RepositoryNotFoundError:
        return
    if not found.private:
        remedy = (
            "checkpoints go to a private one alone: name another as hub_model_id"
            if target.checkpoints
            else "write hub_private_repo: false to push there, or name another as hub_model_id"
        )
        raise HubError(f"stage {target.stage!r}: {target.repo} is public; {remedy}")


def _asked(what: str, call: Any) -> Any:
    """What a call gives, tried again for a while; its failure in one line.

    Raises:
        RepositoryNotFoundError: as it came.
    """
    try:
        return again(call, time.monotonic() + SECONDS, lambda line: None)
    except RepositoryNotFoundError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        passing = status_of(error) in (0, 429) or status_of(error) >= 500
        kind = Unreachable if passing else HubError
        raise kind(f"push_to_hub: {sentence(error, what)}") from error
