"""optimum.quanto, behind the doors of a backend: nothing else in quantolab imports it.

Known faults of Quanto are cured in `cures`; `as_shipped` is Quanto without our cures.
"""

from __future__ import annotations

LIBRARY = "optimum.quanto"
"""What a module must have been made with to hold layers of this backend."""

PACKAGE = "optimum-quanto"
"""What it is called where packages are installed."""

TITLE = "Quanto"
