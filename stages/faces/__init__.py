"""Finding a face, the box around it, and drawing faces for the embedded sample."""
