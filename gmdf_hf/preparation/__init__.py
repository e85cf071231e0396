"""Official data sets and videos to a prepared domain."""
