from __future__ import annotations

from typing import get_args

import pytest

from bot import texts
from bot.llm import FailureKind
from bot.matrix import reply_contents

NOTICES = [*map(texts.failure_notice, get_args(FailureKind)), texts.UNEXPECTED, texts.POISONED]


@pytest.mark.parametrize("notice", NOTICES)
def test_a_notice_is_short_and_plain_and_says_what_a_person_can_do(notice: str) -> None:
    assert len(notice) < 300
    assert "\n" not in notice
    assert "write again" in notice
    assert notice.endswith(".")
    (content,) = reply_contents(notice, reply_to="$1", asker="@a:b", thread_root=None, msgtype="m.notice")
    assert content["body"] == notice


def test_each_kind_of_failure_has_its_own_notice() -> None:
    assert len(set(NOTICES)) == len(get_args(FailureKind)) + 2
