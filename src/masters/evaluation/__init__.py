"""How good a model is: intervals, results and the report pages."""
