"""Steps of a denoiser at its true size, no download: ``python -m quantolab.full_size``."""

from __future__ import annotations

import sys

from .experiments.full_size import full_size_table, main

__all__ = ["full_size_table", "main"]

if __name__ == "__main__":
    sys.exit(main())
