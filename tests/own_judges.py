"""Judges as a user would write them, some of them bad. In a module of its own: judge processes import it."""

import ctypes
import os
import time


class Unbuildable(Exception):
    """An exception that can be pickled and not built again."""

    def __init__(self, one, two):
        super().__init__(one)


def same(answer, truth):
    """Misbehaves as the answer asks, else compares without case."""
    if answer == "loop":
        while True:
            pass
    if answer == "exit":
        os._exit(3)
    if answer == "segfault":
        ctypes.string_at(0)
    if answer == "memory":
        return bool(bytearray(2**36))
    if answer == "raise":
        raise Unbuildable(1, 2)
    if answer == "lambda":
        return lambda: 1
    if answer == "text":
        return "1"
    if answer == "two":
        return 2
    if answer == "nan":
        return float("nan")
    if answer == "none":
        return None
    if answer == "half":
        return 0.5
    return answer.lower() == truth.lower()


def same_batched(items):
    """The same of a list."""
    return [same(item["answer"], item["truth"]) for item in items]


def by_question(items):
    """Right where the answer stands in the question."""
    return (float(item["answer"] in item["question"]) for item in items)


def one_short(items):
    """A verdict too few."""
    return [1.0] * (len(items) - 1)


def in_which_process(answer, truth):
    """Right where it runs in another process than the truth says."""
    return str(os.getpid()) != truth


def slow(answer, truth):
    """Takes its time."""
    time.sleep(60)


def needs_three(answer, truth, question):
    """Takes too much."""


number = 3
