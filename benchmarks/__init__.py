"""What the documents promise, measured. `python -m benchmarks` runs all and writes docs/benchmarks.md.

A benchmark is a file in this folder with a function under `@benchmark`; `__main__` names the files.
"""
