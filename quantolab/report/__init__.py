"""Records in; tables, figures and files out. Knows no model and never imports torch."""

from __future__ import annotations

from . import shown  # noqa: F401 - whoever shows anything lets records show themselves
