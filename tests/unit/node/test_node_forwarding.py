"""What a leader answers to proposals that others pass on: never a second time, and never a lie."""

from __future__ import annotations

from oarlock.node.metrics import FSYNC_SECONDS, Histogram
from oarlock.node.replica.forwarding import REQUESTS_REMEMBERED_MAX, SENDERS_REMEMBERED_MAX, ForwardedProposals, Verdict

NEW, REFUSE, SILENT = Verdict.NEW, Verdict.REFUSE, Verdict.SILENT


def judge(
    f: ForwardedProposals, request: int, *, term: int = 5, leads: bool = True, now: int = 5, boot: int = 1
) -> Verdict:
    return f.judge(term, 2, boot, request, leads=leads, current_term=now)


def leading(term: int = 5) -> ForwardedProposals:
    forwarded = ForwardedProposals(born=3)
    forwarded.lead(term)
    return forwarded


def test_each_request_is_new_once() -> None:
    f = leading()
    assert [judge(f, r) for r in (7, 8, 7, 9, 8)] == [NEW, NEW, SILENT, NEW, SILENT]


def test_a_restarted_sender_begins_anew() -> None:
    f = leading()
    assert [judge(f, 1, boot=b) for b in (1, 2, 1, 2)] == [NEW, NEW, SILENT, SILENT]


def test_after_leading_what_was_taken_is_not_refused_and_the_rest_is_for_good() -> None:
    f = leading()
    judge(f, 1)
    assert judge(f, 1, leads=False, now=6) is SILENT
    assert judge(f, 2, leads=False, now=6) is REFUSE
    assert judge(f, 2, leads=False, now=6) is REFUSE


def test_what_was_refused_is_refused_again_even_while_leading() -> None:
    f = leading()
    assert judge(f, 1) is NEW
    f.refused(2, 1, 1)
    assert judge(f, 1) is REFUSE


def test_terms_of_which_this_process_cannot_know_are_met_with_silence() -> None:
    f = leading()
    assert judge(f, 1, term=3) is SILENT  # perhaps an earlier life of ours led it
    assert judge(f, 1, term=4) is SILENT  # another term before the one that we lead
    assert judge(f, 1, term=6) is SILENT  # a later one than we know
    never = ForwardedProposals(born=3)
    assert judge(never, 1, term=4, leads=False) is REFUSE  # over, and never ours
    assert judge(never, 1, term=5, leads=False) is SILENT  # the present one: it could still be ours


def test_a_new_term_forgets_the_old_one() -> None:
    f = leading()
    judge(f, 1)
    f.lead(6)
    assert judge(f, 1, now=6) is SILENT
    assert judge(f, 1, term=6, now=6) is NEW


def test_memory_is_bounded_and_errs_on_the_side_of_silence() -> None:
    f = leading()
    for request in range(1, REQUESTS_REMEMBERED_MAX + 2):
        assert judge(f, request) is NEW
    assert all(judge(f, request) is SILENT for request in (1, 2, REQUESTS_REMEMBERED_MAX // 2, REQUESTS_REMEMBERED_MAX))
    assert judge(f, REQUESTS_REMEMBERED_MAX + 2) is NEW
    f = leading()
    for boot in range(SENDERS_REMEMBERED_MAX):
        assert judge(f, 1, boot=boot) is NEW
    assert judge(f, 1, boot=SENDERS_REMEMBERED_MAX) is SILENT


def test_a_histogram_names_the_bucket_of_a_quantile() -> None:
    histogram = Histogram(FSYNC_SECONDS)
    assert histogram.quantile(0.99) == 0.0
    for value in [0.0009] * 98 + [0.3, 99.0]:
        histogram.add(value)
    assert (histogram.quantile(0.5), histogram.quantile(0.99), histogram.quantile(1.0)) == (0.001, 0.512, 2 * 8.192)
    assert histogram.count == 100 and sum(histogram.counts) == 100
