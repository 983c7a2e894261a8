"""Items made ahead by a thread: the same items, errors in their place, no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest

from nuclass.core.ahead import ahead


def running() -> bool:
    return any(thread.name.startswith("ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order(depth):
    assert list(ahead(iter(range(100)), depth)) == list(range(100))
    assert list(ahead([])) == []
    assert not running()


def test_an_error_comes_in_the_place_of_its_item():
    def items():
        yield 1
        yield 2
        raise KeyError("three")

    given = ahead(items())
    assert [next(given), next(given)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(given)
    assert not running()


def test_errors_as_items_are_items():
    assert [type(item) for item in ahead([ValueError(), KeyError()])] == [ValueError, KeyError]


def test_the_next_item_is_made_while_the_last_is_used():
    made: list[int] = []

    def items():
        for number in range(4):
            made.append(number)
            yield number

    for item in ahead(items()):
        if item == 0:
            time.sleep(0.3)
            assert made == [0, 1]
    assert made == [0, 1, 2, 3]


def test_a_thread_ends_when_its_items_are_no_longer_wanted():
    made, closed = [], []

    def items():
        try:
            for number in range(1000):
                made.append(number)
                yield number
        finally:
            closed.append(True)

    given = ahead(items())
    assert next(given) == 0
    given.close()
    assert not running()
    assert len(made) < 5
    assert closed == [True]
