"""When ranks agree on whether to stop: all in the same step, on the greatest reason, about twice a second."""

from types import SimpleNamespace

from distgan.distributed.stop_agreement import MOST_STEPS, StopAgreement
from distgan.errors import StopReason


class Ranks:
    """Two ranks: this one, and another with a reason of its own."""

    size = 2

    def __init__(self) -> None:
        self.other, self.num_agreements = StopReason.NONE, 0

    def all_reduce_max(self, own: int) -> int:
        self.num_agreements += 1
        return max(own, self.other)


def test_one_rank_stops_at_once() -> None:
    agreement = StopAgreement(SimpleNamespace(size=1))
    agreement.set_pace(1e6)
    assert agreement.reason(StopReason.NONE) == StopReason.NONE
    assert agreement.reason(StopReason.PREEMPTED) == StopReason.PREEMPTED


def test_ranks_agree_twice_a_second_on_the_greatest_reason() -> None:
    ranks = Ranks()
    agreement = StopAgreement(ranks)
    assert [agreement.reason(StopReason.NONE) for _ in range(3)] == 3 * [StopReason.NONE]
    assert ranks.num_agreements == 3  # before the speed is known, in each step
    agreement.set_pace(20)
    ranks.other = StopReason.INTERRUPTED
    assert agreement.reason(StopReason.FINISHED) == StopReason.INTERRUPTED  # a new pace delays no agreement
    heard = [agreement.reason(StopReason.FINISHED) for _ in range(20)]
    assert [step for step, reason in enumerate(heard) if reason] == [9, 19]


def test_a_fast_run_agrees_at_least_once_in_a_thousand_steps() -> None:
    ranks = Ranks()
    agreement = StopAgreement(ranks)
    agreement.set_pace(1e9)
    for _ in range(1 + 2 * MOST_STEPS):
        agreement.reason(StopReason.NONE)
    assert ranks.num_agreements == 3
