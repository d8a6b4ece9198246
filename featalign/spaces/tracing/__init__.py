"""Tracing: from one recorded forward pass to the spaces of a network."""

from featalign.spaces.tracing.assemble import trace

__all__ = ["trace"]
