"""The whole flow in one thread over fakes that fail: one seed is one run, to the byte."""
