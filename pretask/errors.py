"""The one error that is the user's to mend."""


class UserError(Exception):
    """What came, what was expected, what to do. The command line prints it as one line and exits with code 2."""


class Stopped(Exception):
    """A run was asked to end, and has saved where it was; `code` is that of the process."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
