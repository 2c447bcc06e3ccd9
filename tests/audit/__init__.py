"""An independent auditor: does what stands in the tables follow from the log, and from itself?

It reads the log once, and judges each event alone by the oracle (what is valid, in which window and period it falls).
Everything that adds up it does itself, in whole numbers: which ids count, what the ledger's rows sum to, what that
costs, which thresholds it crosses. So it can be right where the oracle's totals are wrong, and where the order
in which partitions were read decides, it goes by the ledger, and asks only that the ledger is a possible one.

`tests.tables.differences`, which compares row by row with the oracle, is the other net; a case uses both.
"""

from tests.audit.audit import Audit, audit
from tests.audit.evidence import file_messages, read_quotas

__all__ = ["Audit", "audit", "file_messages", "read_quotas"]
