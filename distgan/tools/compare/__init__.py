"""`distgan compare`: train recipes with the same seeds and the same budget, evaluate and compare them alike."""
