"""A comparison that does what the answer says. In a module of its own: each judge process imports it, so it imports little."""

import os
import signal
import time


def behave(answer: str, truth: str) -> bool:
    """Loops, dies, raises, hungers, or compares."""
    if answer == "loop":
        while True:
            pass
    if answer == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if answer == "group":
        os.killpg(0, signal.SIGKILL)
    if answer == "interrupt":
        raise KeyboardInterrupt
    if answer == "raise":
        raise ArithmeticError("no")
    if answer == "exit":
        raise SystemExit(1)
    if answer == "memory":
        return bool(bytearray(2**36))
    time.sleep(0.02 if answer == "slow" else 0)
    return answer == truth
