"""Predicting with trained networks: the ensemble, faces in photos, exported files, attention."""
