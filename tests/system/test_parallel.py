"""Items are worked on in several processes, and come back in order."""

import os
import signal

import pytest

from automixalign.system.errors import DataError, ResourceError
from automixalign.system.parallel import map_in_processes


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def test_results_are_in_order_and_of_several_processes() -> None:
    results = list(map_in_processes(square, range(40), processes=3))
    assert [result for result, _ in results] == [number * number for number in range(40)]
    processes = {process for _, process in results}
    assert os.getpid() in processes, "the first items start no process"
    assert 2 <= len(processes) <= 4


@pytest.mark.parametrize(("count", "processes"), [(2, 4), (40, 1), (0, 4)])
def test_few_items_and_one_processor_need_no_further_process(count: int, processes: int) -> None:
    results = list(map_in_processes(square, range(count), processes))
    assert results == [square(number) for number in range(count)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []
    results = map_in_processes(square, (taken.append(number) or number for number in range(1000)), processes=2)
    for _ in range(10):
        next(results)
    assert len(taken) < 30
    results.close()


def refuse(number: int) -> int:
    if number == 7:
        raise DataError(f"row {number} is bad")
    return number


def test_an_error_is_raised_where_its_result_would_come() -> None:
    results = map_in_processes(refuse, range(40), processes=2)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(DataError, match=r"^row 7 is bad$"):
        next(results)


def die(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_process_is_named() -> None:
    with pytest.raises(ResourceError, match="a process was killed; it may have run out of memory"):
        list(map_in_processes(die, range(40), processes=2))
