"""Proof of exact resumption: a program run whole and in interrupted pieces, compared."""
