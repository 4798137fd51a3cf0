"""Metrics of generated images: pure functions of features, which a frozen network computes once."""
