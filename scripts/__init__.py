"""The stages of the work, each a script and a subcommand of `gmdf`."""
