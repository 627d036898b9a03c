"""Images that come one after the other and cannot be addressed."""
class Stream:
    pass
