"""High-water marks: join laws, and the arithmetic of what a session has not seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.marks import SeqRange, Unseen, advance, join, unseen

sleds = st.sampled_from(["build-1", "build-2", "build-3", ""])
seqs = st.integers(min_value=0, max_value=2**63)
marks = st.dictionaries(sleds, seqs, max_size=4)
small = st.integers(min_value=0, max_value=40)


@given(marks, marks, marks)
def test_joining_is_associative(a: dict[str, int], b: dict[str, int], c: dict[str, int]) -> None:
    assert join([join([a, b]), c]) == join([a, join([b, c])]) == join([a, b, c])


@given(marks, marks)
def test_joining_is_commutative(a: dict[str, int], b: dict[str, int]) -> None:
    assert join([a, b]) == join([b, a])


@given(marks)
def test_joining_is_idempotent(a: dict[str, int]) -> None:
    assert join([a]) == join([a, a]) == a


def test_joining_nothing_gives_no_marks() -> None:
    assert join([]) == {}


@given(st.lists(marks, min_size=1, max_size=5), st.randoms())
def test_replicas_may_merge_in_any_order_any_number_of_times(copies: list[dict[str, int]], random: object) -> None:
    shuffled = [*copies, *copies]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert join(shuffled) == join(copies)


@given(marks, marks)
def test_a_join_holds_the_highest_seq_of_every_sled(a: dict[str, int], b: dict[str, int]) -> None:
    joined = join([a, b])
    assert joined.keys() == a.keys() | b.keys()
    assert all(joined[sled] == max(a.get(sled, 0), b.get(sled, 0)) for sled in joined)


@given(marks, sleds, seqs)
def test_advancing_never_lowers_a_mark(before: dict[str, int], sled: str, seq: int) -> None:
    after = advance(before, sled, seq)
    assert all(after[one] >= before[one] for one in before)
    assert after[sled] == max(seq, before.get(sled, 0))
    assert {one: after[one] for one in after if one != sled} == {one: before[one] for one in before if one != sled}


def test_advancing_leaves_the_marks_it_was_given_alone() -> None:
    before = {"build-1": 1}
    advance(before, "build-1", 2)
    assert before == {"build-1": 1}


@given(mark=small, oldest=st.integers(1, 40), kept=small, max_shown=st.none() | st.integers(0, 12))
def test_what_is_unseen_falls_apart_into_dropped_folded_and_shown(
    mark: int, oldest: int, kept: int, max_shown: int | None
) -> None:
    head = oldest - 1 + kept
    plan = unseen(mark, oldest=oldest, head=head, max_shown=max_shown)
    dropped, folded, shown = (
        list(range(part.first, part.last + 1)) if part else [] for part in (plan.dropped, plan.folded, plan.shown)
    )
    assert dropped + folded + shown == list(range(mark + 1, max(head, mark) + 1))
    assert all(seq < oldest for seq in dropped)
    assert all(seq >= oldest for seq in folded + shown)
    assert max_shown is None or len(shown) <= max_shown
    assert not folded or len(shown) == max_shown
    assert plan.mark == (head if head > mark else None)


@given(
    mark=st.integers(0, 10**18),
    ahead=st.integers(0, 10**18),
    kept=st.integers(0, 10**18),
    max_shown=st.integers(1, 200),
)
def test_huge_numbers_cost_no_more_than_small_ones(mark: int, ahead: int, kept: int, max_shown: int) -> None:
    oldest = mark + 1 + ahead
    head = oldest - 1 + kept
    plan = unseen(mark, oldest=oldest, head=head, max_shown=max_shown)
    counts = [part.last - part.first + 1 if part else 0 for part in (plan.dropped, plan.folded, plan.shown)]
    assert counts == [ahead, max(0, kept - max_shown), min(kept, max_shown)]
    assert all(part is None or part.first <= part.last for part in (plan.dropped, plan.folded, plan.shown))


@pytest.mark.parametrize(
    ("mark", "oldest", "head", "max_shown", "expected"),
    [
        (0, 1, 0, None, Unseen(None, None, None)),
        (0, 1, 3, None, Unseen(None, None, SeqRange(1, 3))),
        (3, 1, 3, None, Unseen(None, None, None)),
        (9, 1, 3, None, Unseen(None, None, None)),
        (0, 5, 9, None, Unseen(SeqRange(1, 4), None, SeqRange(5, 9))),
        (2, 5, 9, 2, Unseen(SeqRange(3, 4), SeqRange(5, 7), SeqRange(8, 9))),
        (2, 5, 9, 0, Unseen(SeqRange(3, 4), SeqRange(5, 9), None)),
        (2, 5, 4, None, Unseen(SeqRange(3, 4), None, None)),
        (4, 5, 9, 5, Unseen(None, None, SeqRange(5, 9))),
    ],
)
def test_the_borders_are_where_they_belong(
    mark: int, oldest: int, head: int, max_shown: int | None, expected: Unseen
) -> None:
    assert unseen(mark, oldest=oldest, head=head, max_shown=max_shown) == expected


def test_a_range_counts_both_of_its_ends() -> None:
    assert len(SeqRange(3, 3)) == 1
    assert len(SeqRange(3, 7)) == 5
