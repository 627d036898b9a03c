"""Score tables for the terminal, and the HTML report of a run."""
