"""What the doctor and its child processes agree on; imports nothing heavy."""

EXTENSIONS = "quanto-extensions"
"""Folder in which plain Quanto builds its extensions during the path matrix."""

DISTRIBUTIONS = {"quanto": "optimum-quanto"}
"""What backends are called where they are installed from, if otherwise."""

WIDTH, ROWS, ROUNDS = 1024, 64, 11
"""The Linear layer that is timed, the rows that go through it, and how often each is timed."""
