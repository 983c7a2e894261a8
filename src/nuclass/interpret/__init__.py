"""What a model looked at: class activation maps."""
