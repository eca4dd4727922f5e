"""Images with annotations: a class or a depth for each pixel, or boxes and masks of objects."""
