"""Folds over `events.Record`: the call tree, the totals, the journal and the log lines.

Each is one viewer of the same source. A fold takes records in order and holds a state.
None of them reads a clock, and none but the journal does I/O.
"""
