"""Measure what a run costs: the real trainer timed by phase, in turns with a bare loop, and on other ranks."""
