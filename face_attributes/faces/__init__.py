"""Faces: detection, boxes, crops, and drawings for the embedded sample."""
