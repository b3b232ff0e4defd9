"""Pure: state and batch in, state and rows out; no disk, nothing printed."""
