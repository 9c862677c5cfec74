"""Several label stores made with the same options: read as one, or merged into one."""
