"""The loop of a Recursive Language Model: decides purely (`steps`), acts thinly (`session`, `driver`)."""

from orchestrator.rlm.driver import RLM
from orchestrator.rlm.iterations import iterations_at
from orchestrator.rlm.leaf import Leaf
from orchestrator.rlm.prompts import PromptStyle
from orchestrator.rlm.session import Session

__all__ = ["RLM", "Leaf", "PromptStyle", "Session", "iterations_at"]
