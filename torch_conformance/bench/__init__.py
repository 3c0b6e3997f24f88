"""`bench OLD NEW`: paired timing of the norm kernels in two interpreters, and a verdict for each kernel.

Two fresh workers, one an interpreter, share one CPU and take turns on the same inputs in blocks of about 2 ms,
in the orders ABBA and BAAB. Such a launch gives one log ratio a kernel; launches are repeated until the
interval of every kernel says enough, or the budget is spent. docs/benchmarks.md has the reasons and the
measured error rates.
"""
