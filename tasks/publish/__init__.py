"""Finished parts in, one atomic commit out. Readers see all of a night or nothing of it."""
