"""How strong a mask a teacher takes: measured on a sample of questions, ratio by ratio."""
