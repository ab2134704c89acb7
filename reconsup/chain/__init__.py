"""Everything that speaks to a chain."""
