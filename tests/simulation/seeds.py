"""Seeds that once failed, each with what it showed: `make test` runs them again."""

from __future__ import annotations

REGRESSIONS = {
    2: "a catalog applied after a crash held for events whose signals the dead run had published under the old one",
    82: "late usage of a plan that was over hid, in Redis, the running period of the plan behind it",
}
