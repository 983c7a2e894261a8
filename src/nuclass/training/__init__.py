"""Training of the three models, caching of context features, prediction."""
