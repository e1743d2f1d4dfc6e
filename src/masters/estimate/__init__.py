"""What a plan would take on a cluster: memory, arithmetic and time, stage by stage."""
