"""`masters ablate`: arms over seeds and data sets, paired, and what they say of a claim."""
