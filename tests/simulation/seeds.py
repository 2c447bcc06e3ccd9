"""Seeds that once failed, each with what it showed: `make test` runs them again."""

from __future__ import annotations

REGRESSIONS: dict[int, str] = {}
