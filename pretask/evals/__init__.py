"""Evaluations of encoders: one pure function per file, independent of how the encoder was trained."""
