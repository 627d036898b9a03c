"""Errors that the command line reports in one line, without a traceback."""


class UserError(Exception):
    """A mistake that the user can fix. The message says what came, what was expected, and what to do.

    The command line prints it as one line and exits with code 2.
    """


class Stopped(Exception):
    """A run was asked to stop and saved a checkpoint first; `code` is the exit code of the process."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def first_line(failure: BaseException) -> str:
    """First line of an exception's message, or the name of its type if it has no message."""
    message = str(failure).strip().splitlines()
    return message[0] if message else type(failure).__name__


def out_of_memory(failure: BaseException) -> bool:
    """Whether an exception means out of memory: Python's own error, CUDA's, or PyTorch's on a CPU, which has no type."""
    marks = ("DefaultCPUAllocator", "std::bad_alloc", "out of memory", "can't start new thread")
    return isinstance(failure, MemoryError) or any(mark in str(failure) for mark in marks)
