"""Properties of every buffer and wrapper, checked against a model or against each other."""
