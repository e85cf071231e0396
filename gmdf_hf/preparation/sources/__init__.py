"""Importers: from the official folders of a data set to records of its videos and images."""
