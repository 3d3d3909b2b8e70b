"""Plans, run call by call on engines. Knows no library."""
