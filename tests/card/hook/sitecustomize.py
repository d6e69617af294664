"""Puts the test card into the processes that do jobs; see ``card_of_tests``."""

import os
import sys

if os.environ.get("QUANTOLAB_TEST_CARD") and any("quantolab.processes" in a for a in sys.orig_argv):
    import card_of_tests

    card_of_tests.insert()
