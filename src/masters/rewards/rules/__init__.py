"""The rules that compare a response with the label, one file each; ``verifiers`` chooses."""
