"""Scores to metrics, intervals, comparisons and reports."""
