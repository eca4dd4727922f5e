"""A page on which a person tries what a model has learned."""
