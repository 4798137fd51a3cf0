"""What a run wrote, shown: curves of one or several runs, and a run as one HTML page."""
