"""Everything that speaks SQL. Knows no chain."""
