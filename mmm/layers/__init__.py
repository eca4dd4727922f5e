"""Transformer layers that encoders and decoders share."""
