"""Show what a run wrote: curves of one or several runs, and a run as one HTML page."""
