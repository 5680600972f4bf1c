"""Chat models: the OpenAI client, and the wrappers that retry, throttle, share, meter and price its calls.

Each wrapper is a `ChatModel` around a `ChatModel`; the order matters and is::

    Metered(Cached(Retried(Throttled(OpenAIChat(...)))))

so that a back-off holds no slot, equal questions in flight are retried once, and one budget reserves once a call.
"""
