"""`python -m loopax`: the same as the program `loopax`."""

from loopax.cli import script

if __name__ == "__main__":
    script()
