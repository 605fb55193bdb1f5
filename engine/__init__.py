"""What a person talks to, and what runs a plan."""
