"""Where a model looks: class activation maps."""
