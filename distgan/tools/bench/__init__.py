"""What a run costs: the real trainer timed by phase, in turns with a bare loop, other ranks and other micro-batches."""
