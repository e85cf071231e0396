"""Importers: the official folders of a data set in, records of its videos and images out."""
