"""The one error that is the user's to mend."""


class UserError(Exception):
    """What came, what was expected, what to do. The command line prints it as one line and exits with code 2."""
