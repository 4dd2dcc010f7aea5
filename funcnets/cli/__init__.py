"""The command line: an application on top of the library, which imports nothing of it."""
