"""The oracle: every row of every table of a complete file run, computed the slow and obvious way.

It shares no code with the product (standard library and PyYAML only), so that a mistake has to be
made twice to go unseen. One pass, one event at a time, nothing forgotten, nothing batched.
"""

from tests.oracle.totals import Tables, compute, compute_log

__all__ = ["Tables", "compute", "compute_log"]
