"""What a token may do, as far as the Hub says."""

import pytest

from toolkit.artifacts.hub_access import may_write


def fine(*scopes, everywhere=()):
    scoped = [
        {"entity": {"type": kind, "name": name}, "permissions": list(rights)}
        for kind, name, rights in scopes
    ]
    token = {"role": "fineGrained", "fineGrained": {"scoped": scoped, "global": list(everywhere)}}
    return {"auth": {"accessToken": token}}


@pytest.mark.parametrize(
    ("who", "may"),
    [
        ({}, True),  # the Hub says nothing
        ({"auth": {"accessToken": {"role": "write"}}}, True),
        ({"auth": {"accessToken": {"role": "read"}}}, False),
        (fine(("user", "me", ["repo.content.read", "repo.write"])), True),
        (fine(("user", "me", ["repo.content.read"])), False),
        (fine(("org", "other", ["repo.write"])), False),
        (fine(("model", "me/thing", ["repo.write"])), True),
        (fine(everywhere=["repo.write"]), True),
        (fine(), False),
    ],
)
def test_only_what_is_certain_is_refused(who, may):
    assert may_write(who, "me") is may
