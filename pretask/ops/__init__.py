"""Pure functions that a paper names, and that more than one part of the package needs."""
