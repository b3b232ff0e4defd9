"""Proof of exact resumption: a program run whole and in interrupted pieces, compared."""

from loopax.verify.pieces import verify

__all__ = ["verify"]
