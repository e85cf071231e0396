"""Preparation of domains from official data sets and videos."""
