from __future__ import annotations

import pytest
from multidict import CIMultiDict
from pydantic import ValidationError

from bot.ingest.sources import KINDS
from tests.bot.ingest.senders import SECRET, WHSEC, mapped, source


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_a_source_that_survives_any_payload(kind: str) -> None:
    taken_by = source(kind)
    contents: list[object] = [{}, [], None, 5, "text", {"action": {}, "data": [], "object_kind": 5}, [[{}]]]
    for content in contents:
        assert mapped(taken_by, content).events == []
        assert mapped(taken_by, content).reason


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"standard"}))
def test_a_delivery_is_known_by_its_id_and_by_its_body(kind: str) -> None:
    taken_by = source(kind)
    headers = CIMultiDict(dict.fromkeys(KINDS[kind].id_headers, "delivery-1"))
    by_id, by_body = taken_by.dedupe_keys(headers, b"{}")
    assert taken_by.dedupe_keys(headers, b"[]")[0] == by_id
    assert taken_by.dedupe_keys(CIMultiDict(), b"{}") == (by_body,)


def test_a_signed_id_needs_no_body() -> None:
    for kind in ("standard", "gitlab"):
        headers = CIMultiDict({"webhook-id": "msg_1"})
        assert len(source(kind, secrets=(WHSEC,)).dedupe_keys(headers, b"{}")) == 1


def test_sources_have_delivery_ids_of_their_own() -> None:
    headers = CIMultiDict({"X-GitHub-Delivery": "1"})
    one, other = (source("github", name=name).dedupe_keys(headers, b"{}") for name in ("one", "other"))
    assert not set(one) & set(other)


def test_only_senders_that_never_come_back_are_waited_for() -> None:
    assert {kind for kind in KINDS if source(kind).patience_s} == {"github", "gitea", "forgejo"}


def test_a_gitlab_source_mixes_no_secrets() -> None:
    with pytest.raises(ValidationError, match="mixes signing tokens"):
        source("gitlab", secrets=(SECRET, WHSEC))
