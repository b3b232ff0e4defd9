"""Looking at a step or a run: where a NaN began, any step again, what a step costs."""
