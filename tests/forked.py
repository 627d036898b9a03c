"""`pretask` in a process of its own that is forked from this one and so need not import everything again, which takes seconds."""

import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkProcess, SpawnProcess
from pathlib import Path
from subprocess import Popen
from types import MappingProxyType
from typing import Literal

import torch

from pretask import __main__

# Autograd counts the devices at its first use. After an export to ONNX it finds some that forked processes could not use.
torch.ones(1, requires_grad=True).sum().backward()

Start = Literal["fork", "spawn"]
HANGS = 120.0  # seconds


def nothing() -> None:
    pass


class Forked:
    """A running `pretask WORDS`, with changes of the environment; what it prints goes to a file.

    `first` is called in the process before the command, to change what the command meets.
    `how` is "spawn" for what must not be forked from a process that has used it, such as Arrow's threads;
    `first` is then a function of a module.
    """

    def __init__(
        self,
        printed: Path,
        *words: object,
        env: Mapping[str, str] = MappingProxyType({}),
        first: Callable[[], None] = nothing,
        how: Start = "fork",
    ):
        self.printed = printed
        given = (printed, [str(w) for w in words], dict(env), first)
        self.process = (ForkProcess if how == "fork" else SpawnProcess)(target=begin, args=given)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def err(self) -> str:
        return self.printed.read_text()

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = HANGS) -> int:
        """Its exit code; one that does not end is killed and a failure."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:  # join() would wait for processes that this one has started
            assert time.monotonic() < end, self.killed(timeout)
            time.sleep(0.002)
        return code

    def killed(self, timeout: float) -> str:
        """What it printed, and where each of its threads was."""
        self.send_signal(signal.SIGUSR2)
        time.sleep(1)
        self.process.kill()
        return f"has not ended in {timeout} s: {self.err}"


def torchrun(
    folder: Path, *words: object, first: Callable[[], None] = nothing, how: Start = "fork"
) -> list[Forked]:
    """Two processes of `pretask WORDS` with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    both |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    ranks = [{**both, "RANK": str(k), "LOCAL_RANK": str(k)} for k in range(2)]
    return [
        Forked(folder / f"printed-{k}.txt", *words, env=env, first=first, how=how)
        for k, env in enumerate(ranks)
    ]


def begin(printed: Path, words: list[str], env: Mapping[str, str], first: Callable[[], None]) -> None:
    os.environ.update(env)
    into = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(into, stream)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))  # not pytest's
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    __main__.IMPORTED = time.monotonic()  # a budget counts from there
    faulthandler.register(signal.SIGUSR2, sys.stderr)
    first()
    __main__.run(words)


def wait_for(path: Path, going: Forked | Popen[str]) -> None:
    """Until a file is there and not empty."""
    wait_until(lambda: path.exists() and path.stat().st_size > 0, going)


def wait_until(is_so: Callable[[], bool], going: Forked | Popen[str]) -> None:
    """Until something holds. One that ends before or takes too long is a failure."""
    end = time.monotonic() + HANGS
    while not is_so():
        if going.poll() is not None:
            raise AssertionError(going.err if isinstance(going, Forked) else going.communicate())
        if time.monotonic() > end:
            if isinstance(going, Forked):
                raise AssertionError(going.killed(HANGS))
            going.kill()
            raise AssertionError(f"still waiting after {HANGS} s: {going.communicate()}")
        time.sleep(0.002)
