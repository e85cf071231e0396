"""Shared by all other folders: errors, files, labels, options, processes."""
