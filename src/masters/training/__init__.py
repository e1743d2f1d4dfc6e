"""How the student learns: token losses, the objective with its one reducer, batches, the loop."""
