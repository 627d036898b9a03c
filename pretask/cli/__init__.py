"""The command line: `pretask VERB …`."""
