"""Scripts of the pipeline; each is a subcommand of `gmdf`."""
