"""How many examples the properties of this folder try: few, to be quick. Many: `--hypothesis-profile thorough`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("unit")
