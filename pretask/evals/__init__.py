"""What frozen features are worth: one pure function per file, no file knows where the features came from."""
