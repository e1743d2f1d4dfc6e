"""The method, one file per step, in order; no stage imports a stage."""
