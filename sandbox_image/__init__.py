"""The image that model-written code runs in: its Dockerfile, its guest program, and the scripts that build it.

Nothing here is imported by the orchestrator. It is a package so that an installation carries it: ``build.sh`` beside
this file builds the image from there as well as from a clone.
"""
