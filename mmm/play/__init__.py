"""A web page to try what a model has learned."""
