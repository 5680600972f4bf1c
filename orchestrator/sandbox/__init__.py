"""Sandboxes: single-use containers that run model-written code and can reach nothing but one Unix socket.

`factory.DockerSandboxes` is the way in; `policy.toml` says what a container may do, and why.
"""
