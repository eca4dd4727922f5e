"""Evaluation: frozen features and what they know, reconstructions, and what runs came to. Tasks are thin verbs over these."""
