"""Pictures that take much memory have their turn; together they never take more than was stated."""

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from distgan.data.memory_budget import MemoryBudget


@given(needs=st.lists(st.integers(0, 150), min_size=1, max_size=12), threads=st.integers(1, 4))
@settings(max_examples=25)
def test_together_no_more_than_the_limit_or_the_largest_is_taken(needs: list[int], threads: int) -> None:
    budget, lock = MemoryBudget(limit=100, free=10), threading.Lock()
    taken = [0]
    most = [0]

    def work(need: int) -> None:
        with budget.reserve(need):
            counted = need if need > 10 else 0
            with lock:
                taken[0] += counted
                most[0] = max(most[0], taken[0])
            threading.Event().wait(0.0005)
            with lock:
                taken[0] -= counted

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, needs))
    assert taken[0] == 0
    assert most[0] <= max(100, *needs)


def test_what_failed_gives_its_part_back() -> None:
    budget = MemoryBudget(limit=100, free=10)
    for _ in range(3):
        try:
            with budget.reserve(90):
                raise ValueError
        except ValueError:
            continue
    with budget.reserve(90):
        pass
