"""What each command does, as functions."""
