"""The demo: a fleet of real processes on one machine learns from real reviews, through a real broker."""
