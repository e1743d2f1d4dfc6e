"""What a teacher is: its weight masks, and what it says about a batch."""
