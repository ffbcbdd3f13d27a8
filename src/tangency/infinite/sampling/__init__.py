"""Joint samples of values, for operations that have no closed form."""
