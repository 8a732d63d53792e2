"""Randomized trials and users to be scored, from files to tables in memory."""
