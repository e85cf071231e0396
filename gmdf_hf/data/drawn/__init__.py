"""Drawn faces: five domains that need no download."""
