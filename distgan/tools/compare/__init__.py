"""`distgan compare`: train recipes with the same seeds and the same budget, evaluate them alike, tell them apart."""
