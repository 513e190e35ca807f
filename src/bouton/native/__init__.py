"""Loops in C for a CPU: one pass over memory for what torch's operations take several for."""
